"""The explainer: why a run went wrong, from what it left behind."""

from sottovoce.diagnosis.explainer.explainer import explain as explain
from sottovoce.diagnosis.explainer.explainer import pages as pages
