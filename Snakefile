# The workflow is workflow/Snakefile. An include alone would plan nothing and exit 0 (its default
# target does not count for the including file), so the target is restated here.


include: "workflow/Snakefile"


rule default:
    default_target: True
    input:
        rules.all.input,
