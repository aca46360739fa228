rule extract:
    input:
        data=data_of_run,
        outcome=of_seeds("outcome.json"),
        run=of_seeds("run.yaml"),
        backbone=of_seeds("backbone.safetensors"),
        method=of_seeds("method.safetensors"),
    output:
        corrected=ensure(of_seeds("corrected/features.safetensors"), non_empty=True),
        released=ensure(of_seeds("released/features.safetensors"), non_empty=True),
    log:
        f"{LOGS}/extract/{JOB}.log",
    benchmark:
        f"{BENCHMARKS}/extract/{JOB}.tsv"
    conda:
        "../envs/peregrine.yaml"
    threads: PROJECT.scale.training_threads
    resources:
        **asked_of("extract"),
    params:
        scale=SCALE,
        code=code_of("extract"),
        protocol=extracted_by,
        threads=PROJECT.scale.training_threads,
        seeds=seed_options,
    message:
        about("Extracting features of")
    shell:
        "OMP_NUM_THREADS={threads} PYTHONPATH=src python -m peregrine extract --scale {params.scale} --run {wildcards.run}"
        " {params.seeds} > {log:q} 2>&1"


rule evaluate:
    input:
        corrected=of_seeds("corrected/features.safetensors"),
        released=of_seeds("released/features.safetensors"),
    output:
        linear=of_seeds(f"corrected/linear-{PROTOCOL}.json"),
        knn=of_seeds(f"corrected/knn-{PROTOCOL}.json"),
        clustering=of_seeds(f"corrected/clustering-{PROTOCOL}.json"),
        released=of_seeds(f"released/clustering-{PROTOCOL}.json"),
    log:
        f"{LOGS}/evaluate/{JOB}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate/{JOB}.tsv"
    conda:
        "../envs/peregrine.yaml"
    threads: 1
    resources:
        **asked_of("evaluate"),
    params:
        scale=SCALE,
        code=fingerprint("evaluate"),
        protocol=protocol_digest(PROJECT.protocol),
        seeds=seed_options,
    message:
        about("Evaluating")
    shell:
        "OMP_NUM_THREADS={threads} PYTHONPATH=src python -m peregrine evaluate --scale {params.scale} --run {wildcards.run}"
        " {params.seeds} > {log:q} 2>&1"


# Only for rows that a study names under `evaluations`: collect asks for no others.
rule robustness:
    input:
        data=data_of_run,
        outcome=of_seeds("outcome.json"),
        run=of_seeds("run.yaml"),
        backbone=of_seeds("backbone.safetensors"),
        method=of_seeds("method.safetensors"),
    output:
        of_seeds(f"corrected/robustness-{PROTOCOL}.json"),
    log:
        f"{LOGS}/robustness/{JOB}.log",
    benchmark:
        f"{BENCHMARKS}/robustness/{JOB}.tsv"
    conda:
        "../envs/peregrine.yaml"
    threads: PROJECT.scale.training_threads
    resources:
        mem_mb=3000,
        runtime="1h",
        gpu=GPU,
    params:
        scale=SCALE,
        code=code_of("robustness"),
        protocol=protocol_digest(PROJECT.protocol, "robustness"),
        threads=PROJECT.scale.training_threads,
        seeds=seed_options,
    message:
        about("Attacking the neighbours of")
    shell:
        "OMP_NUM_THREADS={threads} PYTHONPATH=src python -m peregrine robustness --scale {params.scale} --run {wildcards.run}"
        " {params.seeds} > {log:q} 2>&1"


rule diagnose:
    input:
        corrected=of_seeds("corrected/features.safetensors"),
        released=of_seeds("released/features.safetensors"),
    output:
        collapse=of_seeds(f"corrected/collapse-{PROTOCOL}.json"),
        spectrum=of_seeds("corrected/spectrum.csv"),
        matrices=of_seeds("corrected/matrices.safetensors"),
        released=of_seeds(f"released/collapse-{PROTOCOL}.json"),
        released_spectrum=of_seeds("released/spectrum.csv"),
    log:
        f"{LOGS}/diagnose/{JOB}.log",
    benchmark:
        f"{BENCHMARKS}/diagnose/{JOB}.tsv"
    conda:
        "../envs/peregrine.yaml"
    threads: 1
    resources:
        **asked_of("diagnose"),
    params:
        scale=SCALE,
        code=fingerprint("diagnose"),
        protocol=protocol_digest(PROJECT.protocol),
        seeds=seed_options,
    message:
        about("Collapse diagnostics of")
    shell:
        "OMP_NUM_THREADS={threads} PYTHONPATH=src python -m peregrine diagnose --scale {params.scale} --run {wildcards.run}"
        " {params.seeds} > {log:q} 2>&1"
