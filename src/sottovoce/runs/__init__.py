"""A run directory: every file that training, evaluation and reports leave in it.

    config.yaml  environment.json                        how the run was made          directory.py
    sessions.json  lexicon.json  left_out.json           what the model was made for   directory.py, vocabulary.py ...
    trained_on.json  teachers.json                       what it was trained on        trained_on.py, taught_by.py
    lock.json                                            who trains it now             lock.py
    metrics.jsonl  events.jsonl  tensorboard/            what happened                 names.py, reading.py
    checkpoints/last/  checkpoints/best/                 weights and state             core/checkpoints.py
    capsules/                                            bad steps, to compute again
    evaluation/  hypotheses.*.jsonl                      rates, hypotheses, examples   evaluations.py, examples.py
    report.html

`trained_decoder.py` loads what decodes; `reading.py` reads the whole record. Nothing here needs the data set,
the losses or the code that trained the run.
"""
