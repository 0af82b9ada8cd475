"""`vmferry bench`: its figures, what it tells, and migrations without a QEMU to compare with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vmferry.tools.measure.bench.cases import BenchError, Case, Variant, default_hot
from vmferry.tools.measure.bench.cpu import CpuMeter
from vmferry.tools.measure.bench.firmware import HOT_START, LOW, firmware, read_beats
from vmferry.tools.measure.bench.plot import check_plot, draw
from vmferry.tools.measure.bench.results import Beyond, Report, Result, Run
from vmferry.tools.measure.bench.sampling import beyond_guest
from vmferry.tools.measure.bench.table import print_report
from vmferry.transport.settings import MultifdCompression

GIB = 1 << 30
MIB = 1 << 20


def case(**changes: Any) -> Case:
    """Return a live guest of 2 GiB, unless the changes say otherwise."""
    values: dict[str, Any] = {
        "size": 2 * GIB,
        "content": "random",
        "writes": 20 * MIB,
        "destination": "cold",
        "variant": Variant(),
        "hot": 64 * MIB,
    }
    return Case(**{**values, **changes})


def report() -> Report:
    """Return a report of three programs in one case, whose median is no mean."""
    ours = [
        Run(seconds, downtime, cpu, 0.3, 0.2, transferred, 20.0 * MIB)
        for seconds, downtime, cpu, transferred in (
            (1.0, 0.040, 3.0, 2100 * MIB),
            (90.0, 9.0, 99.0, 9999 * MIB),
            (0.5, 0.020, 2.0, 2080 * MIB),
        )
    ]
    theirs = [Run(2.0, 0.080, 4.0, 0.0, 0.0, 2200 * MIB, 19.0 * MIB)]
    limit = [Run(0.8, cpu=1.0, transferred=2048 * MIB)]
    results = [
        Result(case(), "vmferry", ours, Beyond(40 * MIB, 50 * MIB)),
        Result(case(), "qemu", theirs, Beyond(20 * MIB, 21 * MIB)),
        Result(case(), "limit", limit),
    ]
    return Report(results, {"vmferry send dir:": 0.35})


def test_medians_for_a_gib() -> None:
    """Broken: one run that something disturbed would decide the figures."""
    ours, theirs, _ = report().results
    assert ours.throughput == 2.0
    assert ours.downtime == 0.040
    assert ours.cpu == 1.5
    assert ours.transferred == 2100 * MIB
    assert theirs.throughput == 1.0


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Broken: a figure would stand under another's name, or a ratio upside down."""
    print_report(report())
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["GiB", "writes", "content", "memory", "variant", "program"]
    ours = "2 20 MiB/s random cold plain vmferry 2.00 0.80 40 1.50 2100.0 20.0 40 + 50 0.30"
    limit = "2 20 MiB/s random cold plain limit 2.50 1.00 0.50 2048.0"
    assert [" ".join(row.split()) for row in rows[:3:2]] == [ours, limit]
    compared = "2 GiB, 20 MiB/s, random, cold, plain: 2.00 x QEMU's throughput, "
    compared += "0.75 x its CPU, 0.50 x its downtime, 0.95 x its bytes on the wire"
    assert rows[3:] == [compared, "first byte on the wire, vmferry send dir:: 0.35 s"]


def test_json_has_medians_and_runs() -> None:
    """Broken: a program could not tell a median from a run, or find the case of a figure."""
    value = json.loads(json.dumps(report().as_json()))
    ours, _, limit = value["results"]
    assert (ours["size"], ours["writes"], ours["variant"]) == (2 * GIB, 20 * MIB, "plain")
    assert (ours["program"], ours["throughput"], ours["downtime"]) == ("vmferry", 2.0, 0.040)
    assert [run["seconds"] for run in ours["runs"]] == [1.0, 90.0, 0.5]
    assert ours["beyond"] == {"source": 40 * MIB, "destination": 50 * MIB}
    assert limit["beyond"] is None
    assert value["first-byte"] == {"vmferry send dir:": 0.35}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"size": 1000000}, "1 MiB"),
        ({"size": MIB}, "less than"),
        ({"content": "untouched"}, "untouched"),
        ({"size": 64 * MIB}, "hot set"),
    ],
)
def test_cases_that_cannot_be(changes: dict[str, Any], why: str) -> None:
    """Broken: QEMU and vmferry would have different guests, or one that overwrites itself."""
    with pytest.raises(BenchError, match=why):
        case(**changes)


@pytest.mark.parametrize("name", ["", "lzma", "zstd:x", "xbzrle:3", "multifd:3"])
def test_unknown_variant(name: str) -> None:
    """Broken: a wrong variant would be measured as another one."""
    with pytest.raises(BenchError, match="plain, xbzrle"):
        Variant(name)


def test_variants_mean_the_same_to_both() -> None:
    """Broken: vmferry would be compared with a QEMU that does something else."""
    assert Variant("xbzrle").parameters(0).xbzrle
    assert Variant("xbzrle").of_qemu(5) == ({"xbzrle"}, {"max-bandwidth": 5})
    assert Variant("zstd:3").parameters(0).compress == "zstd:3"
    needed = Variant("zstd:3").of_qemu(5)
    assert needed is not None
    assert needed[0] == {"multifd"}
    assert needed[1]["multifd-zstd-level"] == 3
    assert Variant("adaptive").of_qemu(5) is None
    both = Variant("multifd-zstd:2")
    assert both.channels == 2
    assert both.parameters(0).multifd_channels == 2
    assert both.parameters(0).multifd_compression is MultifdCompression.ZSTD
    plain = {"max-bandwidth": 5, "multifd-channels": 2}
    assert Variant("multifd").of_qemu(5) == ({"multifd"}, plain)
    compressed = {"multifd-compression": "zstd", "multifd-zstd-level": 2}
    assert both.of_qemu(5) == ({"multifd"}, plain | compressed)


def test_firmware_is_a_bios() -> None:
    """Broken: the processor would begin somewhere else, and the benchmark wait for ever."""
    image = firmware(default_hot(256 * MIB), 20 * MIB)
    assert len(image) == 1 << 16
    assert image[-16:-11] == bytes.fromhex("ea000000f0")
    low = image[0x100 : 0x100 + LOW - 0x7C00]
    assert read_beats(bytes(0x7C00) + low).beats == 0
    assert HOT_START.to_bytes(4, "little") in low


SMAPS = """\
7f0000000000-7f0080000000 rw-s 00000000 00:01 17 /memfd:vmferry-bench-source (deleted)
Size:            2097152 kB
Pss:             1048576 kB
7f0080000000-7f0080100000 rw-s 00000000 00:01 18                     /memfd:ring (deleted)
Pss:                 512 kB
Pss_Dirty:           512 kB
7f0080200000-7f0080300000 rw-p 00000000 00:00 0
Pss:                 100 kB
7f0080400000-7f0080500000 rw-s 00000000 00:01 19  /memfd:synthetic.ram (deleted)
Pss:                 900 kB
7f0080600000-7f0080700000 rw-p 00000000 00:00 0                      [heap]
Pss:                  12 kB
"""


def test_memory_beyond_the_guest() -> None:
    """Broken: a guest's RAM would count as memory of the migration, or a ring as the guest's."""
    assert beyond_guest(SMAPS.splitlines(keepends=True)) == (512 + 100 + 12) << 10


BURN = "import time\nwhile time.process_time() < 0.5: pass\ninput()"


def test_cpu_time_of_the_dead() -> None:
    """Broken: the work of vmferry's processes, which nobody waits for, would cost nothing."""
    meter = CpuMeter(lambda: 0)
    before = meter.spent()
    with subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE) as burning:
        while meter.spent() - before < 0.45:
            assert burning.poll() is None
    assert meter.spent() - before >= 0.45


def test_cpu_time_without_the_guest() -> None:
    """Broken: the guest's work would count as that of the migration."""
    code = (
        "import time\nprint(flush=True)\nwhile time.process_time() < 0.5: pass\nprint(flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as guest:
        assert guest.stdout is not None
        meter = CpuMeter(lambda: guest.pid)
        guest.stdout.readline()
        before = meter.spent()
        guest.stdout.readline()
        assert meter.spent() - before < 0.4


def test_picture(tmp_path: Path) -> None:
    """Broken: `--plot` would fail after all that was measured."""
    pytest.importorskip("matplotlib")
    for name in ("out.png", "out.svg"):
        check_plot(tmp_path / name)
        draw(report(), tmp_path / name)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "out.svg").read_text()


def test_no_matplotlib(vmferry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: an hour of measuring would end in a traceback."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = vmferry.call("bench", "--plot", "out.png")
    assert ran.exit_code == 1
    assert ran.stderr == "vmferry: --plot needs matplotlib: pip install 'vmferry[plot]'\n"


@pytest.mark.parametrize("path", ["out.gif", "none/out.svg"])
def test_picture_that_cannot_be(path: str, vmferry: Any) -> None:
    """Broken: an hour of measuring would end without a picture."""
    ran = vmferry.call("bench", "--plot", str(vmferry.folder / path))
    assert ran.exit_code == 1
    assert ran.stderr.count("\n") == 1
    assert "--plot: " in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("content", ["random", "zero", "untouched"])
def test_measures_a_still_guest(content: str, vmferry: Any) -> None:
    """Broken: the numbers in our documents could not be measured again."""
    ran = vmferry.run(
        *("bench", "--size", "32M", "--runs", "1", "--content", content, "--writes", "still"),
        *("--hot", "4M", "--json"),
    )
    assert ran.status == 0, ran.err
    ours, *limit = json.loads(ran.out)["results"]
    assert (ours["program"], ours["content"], ours["writes"]) == ("vmferry", content, "still")
    assert ours["throughput"] > 0
    assert ours["beyond"]["source"] > MIB
    assert [its["program"] for its in limit] == ([] if content == "untouched" else ["limit"])


@pytest.mark.slow
@pytest.mark.parametrize("destination", ["cold", "warm"])
def test_measures_a_live_guest(destination: str, vmferry: Any) -> None:
    """Broken: the case that people have would not be measured."""
    ran = vmferry.run(
        *("bench", "--size", "64M", "--runs", "1", "--destination", destination, "--json"),
        *("--content", "text", "--variant", "zstd"),
    )
    assert ran.status == 0, ran.err
    value = json.loads(ran.out)
    ours, _ = value["results"]
    assert ours["written"] > 0
    assert 0 < ours["transferred"] < 48 * MIB
    assert set(value["first-byte"]) == {"vmferry send dir:", "vmferry send synthetic:"}


def test_qemu_that_is_not_there(vmferry: Any) -> None:
    """Broken: a wrong --qemu would be a traceback."""
    ran = vmferry.run("bench", "--size", "32M", "--runs", "1", "--qemu", "/none/qemu")
    assert ran.status == 1
    assert ran.err.splitlines()[-1] == "vmferry: /none/qemu: No such file or directory"
