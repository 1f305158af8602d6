"""taskpgm: certified task mixtures for fine-tuning language models.

The packages stand in the order in which data flow through them, and each imports only from those
before it: tasks, models, training, affinity, mixture, evaluation, report. `taskpgm.mixture` needs
nothing but jax and numpy.
"""
