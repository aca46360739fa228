rule collect:
    input:
        results=results_of_study,
        published=published_of_study,
        replicates=replicates_of_study,
        variations=variations_of_study,
    output:
        collected=f"{RESULTS}/{SCALE}/{{study}}/collected.json",
        metrics=f"{RESULTS}/{SCALE}/{{study}}/metrics.csv",
        runs=f"{RESULTS}/{SCALE}/{{study}}/runs.csv",
        claims=f"{RESULTS}/{SCALE}/{{study}}/claims.json",
        tables=report(
            directory(f"{RESULTS}/{SCALE}/{{study}}/tables"),
            patterns=["{name}.csv"],
            caption="../report/table.rst",
            category="{study}",
            subcategory="Tables",
            labels={"table": "{name}"},
        ),
        figures=report(
            directory(f"{RESULTS}/{SCALE}/{{study}}/figures"),
            patterns=["{name}.svg"],
            caption="../report/figure.rst",
            category="{study}",
            subcategory="Figures",
            labels={"figure": "{name}"},
        ),
    log:
        f"{LOGS}/collect/{SCALE}-{{study}}.log",
    benchmark:
        f"{BENCHMARKS}/collect/{SCALE}-{{study}}.tsv"
    conda:
        "../envs/peregrine.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="1h",
    params:
        scale=SCALE,
        code=fingerprint("collect"),
        study=study_digest,
    message:
        "Tables, figures and claims of {wildcards.study}"
    shell:
        "PYTHONPATH=src python -m peregrine collect --scale {params.scale} {wildcards.study} > {log:q} 2>&1"


rule report:
    input:
        collected=f"{RESULTS}/{SCALE}/{{study}}/collected.json",
        tables=f"{RESULTS}/{SCALE}/{{study}}/tables",
        figures=f"{RESULTS}/{SCALE}/{{study}}/figures",
        notebook="workflow/notebooks/study.py",
        templates=["workflow/report/study.typ", "workflow/report/house.typ"],
    output:
        pdf=report(
            f"{REPORTS}/{{study}}.pdf",
            caption="../report/study.rst",
            category="{study}",
            subcategory="Report",
            labels={"report": "PDF"},
        ),
        html=f"{REPORTS}/{{study}}.html",
        notebook=f"{REPORTS}/{{study}}.ipynb",
        data=f"{REPORTS}/{{study}}.json",
    log:
        f"{LOGS}/report/{SCALE}-{{study}}.log",
    benchmark:
        f"{BENCHMARKS}/report/{SCALE}-{{study}}.tsv"
    conda:
        "../envs/peregrine.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="1h",
    params:
        scale=SCALE,
        code=fingerprint("report"),
        study=study_digest,
    message:
        "Notebook, page and PDF of {wildcards.study}"
    shell:
        "PYTHONPATH=src python -m peregrine report --scale {params.scale} {wildcards.study} > {log:q} 2>&1"


rule index:
    input:
        expand(f"{RESULTS}/{SCALE}/{{study}}/collected.json", study=STUDIES),
        expand(f"{REPORTS}/{{study}}.pdf", study=STUDIES),
        theory=expand(f"{REPORTS}/{{study}}.json", study=THEORY_STUDY),
    output:
        page=f"{REPORTS}/index.html",
    log:
        f"{LOGS}/index/{SCALE}.log",
    conda:
        "../envs/peregrine.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime="10m",
    params:
        scale=SCALE,
        code=fingerprint("report"),
    message:
        "Index page"
    shell:
        "PYTHONPATH=src python -m peregrine index --scale {params.scale} > {log:q} 2>&1"


# Failed science is a result: everything above is made first, then the workflow fails with the list.
rule verdict_gate:
    input:
        runs=expand(f"{RESULTS}/{SCALE}/{{study}}/runs.csv", study=STUDIES),
        reports=expand(f"{REPORTS}/{{study}}.pdf", study=STUDIES),
    output:
        passed=f"{RESULTS}/{SCALE}/verdict_gate.txt",
    log:
        f"{LOGS}/verdict_gate/{SCALE}.log",
    conda:
        "../envs/peregrine.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime="10m",
    message:
        "Which runs did not finish"
    shell:
        "PYTHONPATH=src python -m peregrine gate {input.runs:q} --output {output.passed:q} > {log:q} 2>&1"
