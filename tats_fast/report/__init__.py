"""Pictures and pages of what a model and its sampler do; see ``visualize.write_report``."""
