"""The shipped configurations: one YAML file a recipe, over the dataclasses beside what they configure."""
