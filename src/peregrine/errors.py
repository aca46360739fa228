"""The one error that a user can cause: a single line that names file, key and remedy."""

import errno


class UserError(Exception):
    """Bad configuration, data or artefact. The command line prints it and exits with code 2."""


REMEDIES = {
    errno.ENOSPC: "free some space, then run the same command again",
    errno.EDQUOT: "free some of your quota, then run the same command again",
    errno.EACCES: "give yourself permission, then run the same command again",
    errno.EPERM: "give yourself permission, then run the same command again",
    errno.EROFS: "choose a folder that can be written (results and reports in config.yaml)",
}
"""What a user can do about a machine that refuses to read or write."""


def refusal(error: OSError) -> str:
    """The system's reason for not reading or writing, and the remedy where there is one."""
    remedy = REMEDIES.get(error.errno or 0)
    return f"{error.strerror or error}{f'; {remedy}' if remedy else ''}"


def out_of_memory(error: Exception) -> bool:
    """Whether a machine's or a GPU's memory was too small; torch says so in its own ways."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
        or str(error).startswith("could not create a ")  # oneDNN, of a buffer or a primitive
    )
