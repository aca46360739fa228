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
    threads: lambda wildcards: 8 if is_folders(wildcards) else 1
    resources:
        mem_mb=lambda wildcards: 8000 if is_folders(wildcards) else 2000,
        runtime=lambda wildcards: "12h" if is_folders(wildcards) else "1h",
    params:
        code=code_of_data,
        source=source_of,
    message:
        "Preparing data set {wildcards.dataset}"
    shell:
        "PYTHONPATH=src python -m peregrine prepare {wildcards.dataset}"
        " --threads {threads} > {log:q} 2>&1"
