# What a killed run resumes from lies in {seed folder}/resume, outside of the declared outputs,
# because Snakemake deletes those (and logs) before every start.


rule pretrain:
    input:
        data=data_of_run,
    output:
        outcome=ensure(of_seeds("outcome.json"), non_empty=True),
        manifest=of_seeds("manifest.json"),
        run=of_seeds("run.yaml"),
        backbone=ensure(of_seeds("backbone.safetensors"), non_empty=True),
        method=ensure(of_seeds("method.safetensors"), non_empty=True),
        history=of_seeds("history.csv"),
        timing=of_seeds("timing.csv"),
    log:
        f"{LOGS}/pretrain/{JOB}.log",
    benchmark:
        f"{BENCHMARKS}/pretrain/{JOB}.tsv"
    conda:
        "../envs/peregrine.yaml"
    threads: lambda wildcards: PROJECT.scale.training_threads * at_once(wildcards)
    resources:
        **asked_of("pretrain", at_once),
    params:
        scale=SCALE,
        code=code_of("pretrain"),
        seeds=seed_options,
        threads=PROJECT.scale.training_threads,  # another count gives other last bits
    message:
        about("Pretraining")
    shell:
        "OMP_NUM_THREADS={params.threads} PYTHONPATH=src python -m peregrine pretrain --scale {params.scale} --run {wildcards.run}"
        " {params.seeds} > {log:q} 2>&1"
