# Only for rows that a study names under `evaluations: detection`, and only where config.yaml says
# where the scale's boxes lie: else collect asks for no such file.
DETECTION = PROJECT.detection


rule detect:
    input:
        data=data_of_run,
        outcome=of_seeds("outcome.json"),
        run=of_seeds("run.yaml"),
        backbone=of_seeds("backbone.safetensors"),
        method=of_seeds("method.safetensors"),
    output:
        boxes=of_seeds(f"corrected/detection-{PROTOCOL}.json"),
        picture=of_seeds(f"corrected/detection-{PROTOCOL}.png"),
    log:
        f"{LOGS}/detect/{JOB}.log",
    benchmark:
        f"{BENCHMARKS}/detect/{JOB}.tsv"
    conda:
        "../envs/peregrine.yaml"
    threads: PROJECT.scale.training_threads
    resources:
        mem_mb=6000,
        runtime="24h",
        gpu=GPU,
    params:
        scale=SCALE,
        code=code_of("detect"),
        detection=digest(DETECTION.chosen) if DETECTION else "",
        threads=PROJECT.scale.training_threads,
        seeds=seed_options,
    message:
        about("Fine-tuning a detector from")
    shell:
        "OMP_NUM_THREADS={threads} PYTHONPATH=src python -m peregrine detect --scale {params.scale} --run {wildcards.run}"
        " {params.seeds} > {log:q} 2>&1"
