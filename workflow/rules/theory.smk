from peregrine.config.theory import load_theory

try:
    THEORY = load_theory(Path("config"), PROJECT.scale)
except UserError as error:
    raise WorkflowError(str(error))

THEORY_RESULTS = f"{RESULTS}/theory/{SCALE}"


rule theory:
    output:
        record=f"{THEORY_RESULTS}/theory.json",
        lines=expand(
            f"{THEORY_RESULTS}/{{name}}.csv",
            name=["codes", "assignments", "embeddings", "cosines"],
        ),
    log:
        f"{LOGS}/theory/{SCALE}.log",
    benchmark:
        f"{BENCHMARKS}/theory/{SCALE}.tsv"
    conda:
        "../envs/peregrine.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime="1h",
    params:
        scale=SCALE,
        code=fingerprint("theory"),
        sizes=digest(THEORY.sizes),
    message:
        "Minimising over free assignments and embeddings"
    shell:
        "OMP_NUM_THREADS={threads} PYTHONPATH=src python -m peregrine theory --scale {params.scale}"
        " > {log:q} 2>&1"


rule theory_report:
    input:
        record=rules.theory.output.record,
        lines=rules.theory.output.lines,
        notebook="workflow/notebooks/theory.py",
        templates=["workflow/report/theory.typ", "workflow/report/house.typ"],
    output:
        pdf=report(
            f"{REPORTS}/theory.pdf",
            caption="../report/theory.rst",
            category="theory",
            subcategory="Report",
            labels={"report": "PDF"},
        ),
        html=f"{REPORTS}/theory.html",
        notebook=f"{REPORTS}/theory.ipynb",
        data=f"{REPORTS}/theory.json",
    log:
        f"{LOGS}/theory_report/{SCALE}.log",
    benchmark:
        f"{BENCHMARKS}/theory_report/{SCALE}.tsv"
    conda:
        "../envs/peregrine.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="1h",
    params:
        scale=SCALE,
        code=fingerprint("theory_report"),
        study=digest(THEORY),
    message:
        "Notebook, page and PDF of the theory study"
    shell:
        "PYTHONPATH=src python -m peregrine theory-report --scale {params.scale} > {log:q} 2>&1"
