"""A SLURM of one node and two GPUs that are none, for as long as a test needs it.

Real slurmctld, slurmd and munged, of Debian's packages, as root, without systemd, cgroups or
accounting; everything they write is in one folder. They listen on 127.0.0.1 and end with the test,
or by themselves. Only slurm.conf and gres.conf must be in /etc/slurm: srun inside of a job looks
nowhere else.
"""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "setpriv", "sbatch", "squeue", "scontrol", "scancel")
PLUGIN = "snakemake_executor_plugin_slurm"
ETC = Path("/etc/slurm")
MUNGE = Path("/run/munge")
OURS = "# Of a test, process "
WITH_THE_TEST = ("setpriv", "--pdeathsig", "TERM")
"""In front of a command that is to end when the test is killed."""
LIFE = "900"
"""Seconds after which a daemon ends whatever happens to the test."""
CONF = """\
{ours}{pid}
ClusterName=peregrine
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
# A requeued job waits for so many seconds and one.
AuthInfo=cred_expire=5
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
MinJobAge=300
KillWait=5
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:fake:2 State=UNKNOWN
PartitionName=normal Nodes=ALL Default=YES MaxTime=3-00:00:00 PriorityTier=1 State=UP
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=2 State=UP
"""


def missing() -> str:
    """Why there can be no cluster here, in words; empty if there can."""
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    if not sys.platform.startswith("linux") or os.geteuid():
        return "a SLURM of its own needs Linux and root"
    if lacking:
        return f"no {', '.join(lacking)} (apt-get install slurmctld slurmd slurm-client munge)"
    if not importlib.util.find_spec(PLUGIN):
        return "no snakemake-executor-plugin-slurm (pip install it beside Snakemake)"
    conf = ETC / "slurm.conf"
    if conf.exists() and not _left_over(conf):
        return f"{conf} belongs to a SLURM that is there already"
    return ""


def _left_over(conf: Path) -> bool:
    """Whether it is the configuration of a test that was killed."""
    first = conf.read_text().partition("\n")[0]
    pid = first.removeprefix(OURS)
    return first.startswith(OURS) and not Path("/proc", pid).exists()


def wait_for(what: str, found: Callable, seconds: float = 60, every: float = 0.2):
    """The first true value of `found()`."""
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until, f"not within {seconds:.0f} s: {what}"
        time.sleep(every)
    return value


def ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def job(number: str) -> dict[str, str]:
    """What SLURM says of a job, as names and values."""
    return dict(re.findall(r"(\S+?)=(\S*)", ask("scontrol", "show", "job", number, "--oneliner")))


def _start(*command: str, user: str = "root") -> subprocess.Popen:
    other = () if user == "root" else (f"--reuid={user}", f"--regid={user}", "--clear-groups")
    return subprocess.Popen(
        [*WITH_THE_TEST, *other, "timeout", "--kill-after=5", LIFE, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@contextmanager
def cluster(place: Path) -> Iterator[None]:
    """Run one, with its state in `place`; every job has ended at the end."""
    for name in ("state", "spool"):
        (place / name).mkdir(parents=True)
    daemons = []
    try:
        if subprocess.run(["munge", "-n"], capture_output=True).returncode:
            MUNGE.mkdir(mode=0o755, exist_ok=True)
            shutil.chown(MUNGE, "munge", "munge")
            daemons.append(_start("munged", "--foreground", user="munge"))
            answers = ["munge", "-n"]
            wait_for(
                "an answer of munged",
                lambda: not subprocess.run(answers, capture_output=True).returncode,
            )
        _configure(place)
        daemons.append(_start("slurmctld", "-D", "-i"))
        daemons.append(_start("slurmd", "-D"))
        idle = ["sinfo", "--noheader", "--format=%T"]
        wait_for(
            "an idle node",
            lambda: "idle" in subprocess.run(idle, capture_output=True, text=True).stdout,
        )
        yield
        ask("scancel", "--user", "root")
        wait_for("the end of all jobs", lambda: not ask("squeue", "--noheader"), 30)
    finally:
        for daemon in reversed(daemons):
            with suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()
        for name in ("slurm.conf", "gres.conf"):
            (ETC / name).unlink(missing_ok=True)


def _configure(place: Path) -> None:
    node = dict(re.findall(r"(CPUs|RealMemory)=(\d+)", ask("slurmd", "-C")))
    # Character devices, which SLURM counts and hands out; nothing ever opens them.
    devices = [place / f"gpu{index}" for index in range(2)]
    for device in devices:
        ask("mknod", str(device), "c", "1", "3")
    ETC.mkdir(exist_ok=True)
    known = {"ours": OURS, "pid": os.getpid(), "host": socket.gethostname().partition(".")[0]}
    known |= {"place": place, "memory": int(node["RealMemory"]) - 100, "cpus": node["CPUs"]}
    lines = [f"Name=gpu Type=fake File={device}" for device in devices]
    (ETC / "gres.conf").write_text("\n".join(["AutoDetect=off", *lines, ""]))
    (ETC / "slurm.conf").write_text(CONF.format(**known))
