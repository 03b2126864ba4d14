"""Sets of samples, made by any number of processes.

A set is samples 0 .. N - 1. Sample i depends on the set's configuration and on i alone, and the files hold fixed ranges
of indices, so neither the samples nor the files depend on how many processes made them.

- `batches`: which samples are missing, and which of them are made together (pure functions);
- `files`, `seals`, `sample_set`, `costs`: what is kept on the disk, whole after a kill at any moment, with checksums;
- `claims`, `fingerprints`: whose a folder is, and which model its samples are of;
- `processes`: the processes that `accelerate launch` starts;
- `loading`, `sources`: the pipeline that the arguments ask for, and how it makes samples;
- `generate`: the loop; `making`, `publishing`: the command `hf-maskdiff generate` around it.
"""
