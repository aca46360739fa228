rule prepare:
    output:
        data=f"{RESULTS}/data/{{dataset}}.safetensors",
        record=f"{RESULTS}/data/{{dataset}}.json",
    log:
        f"{LOGS}/prepare/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/prepare/{{dataset}}.tsv"
    conda:
        "../envs/peregrine.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="1h",
    params:
        code=code_of_data,
        source=source_of,
    message:
        "Preparing data set {wildcards.dataset}"
    shell:
        "PYTHONPATH=src python -m peregrine prepare {wildcards.dataset} > {log:q} 2>&1"
