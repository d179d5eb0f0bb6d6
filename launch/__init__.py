"""Everything that runs: the scripts that people type, and what they are made of.

Imports all other packages and is imported by none of them. Where a change belongs:

* scripts: train_nvae, train_flat_vae, sweep, evaluate, sample, traverse, score, compare, compress, prepare_data, plan,
  quickstart, import_official. `cli` has their errors and exit codes, `config` and `families` their flags, `presets`
  and `flat_presets` their recipes.
* training: train (what starts and ends a run), loop, trainer (one step), model (what it asks of one), optim, guard (bad
  steps), ema, batch_norm_cache, noise, compiling, feeding, host_memory, distributed, checkpoint, resuming, runs (the
  folder), monitor (records); replicas and replica_trainer for several at once.
* measuring: evaluation, baseline, encoding, codes_file, scoring, hierarchy, score_tables; memory and cost for `plan`;
  published figures; bits_back for `compress`; sweep_report for `sweep`.
* pictures: figures, latent_figures.
* `report/`: what `compare` writes. `studies/`: experiments of many runs.
"""
