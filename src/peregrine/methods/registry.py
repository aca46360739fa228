"""Methods by name. A new method is one file and one line here; nothing is imported until used."""

METHODS: dict[str, str] = {
    "barlow_twins": "peregrine.methods.barlow_twins:BarlowTwins",
    "falcon": "peregrine.methods.falcon:Falcon",
    "two_branch": "peregrine.methods.two_branch:TwoBranch",
    "swav": "peregrine.methods.swav:SwAV",
    "dino": "peregrine.methods.dino:Dino",
    "self_classifier": "peregrine.methods.self_classifier:SelfClassifier",
    "gedi": "peregrine.methods.gedi:Gedi",
    "vicreg": "peregrine.methods.vicreg:VICReg",
}
