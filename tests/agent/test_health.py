"""Health facts out of a made-up /sys and /proc: every board lacks some of them, and none may fail."""

from pathlib import Path

import pytest

from edgellm.agent.health import health

ROUTE = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0100000A\t0003\t0\t0\t600\t00000000\t0\t0\t0
end0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
end0\t0000000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
usb0\t0000010A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""
ADDRESSES6 = "fe800000000000000000000000000001 03 40 20 80     usb0\n00000000000000000000000000000001 01 80 10 80 lo\n"
ROUTE6 = (
    "fe800000000000000000000000000000 40 00000000000000000000000000000000 00 "
    "00000000000000000000000000000000 00000100 00000001 00000000 00000001     end0\n"
    "00000000000000000000000000000000 00 00000000000000000000000000000000 00 "
    "fe800000000000000000000000000001 00000400 00000001 00000000 00000003     end1\n"
    "00000000000000000000000000000000 00 00000000000000000000000000000000 00 "
    "00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n"
)
CPU = "sys/devices/system/cpu/cpu0"
COOLING = "sys/class/thermal/cooling_device0"


def board(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def read(root: Path, files: dict[str, str], address: str | None = None) -> dict:
    return vars(health(address, root=board(root, files)))


def test_a_board_that_tells_nothing_gives_none_for_all(tmp_path):
    assert read(tmp_path, {}) == {
        "temperature_c": None, "throttled": None, "undervoltage": None, "link_mbit": None, "ram_total_bytes": None,
        "uptime_s": None,
    }  # fmt: skip


def test_a_healthy_orange_pi(tmp_path):
    files = {
        "sys/class/thermal/thermal_zone0/temp": "51111\n",
        "sys/class/thermal/thermal_zone1/temp": "48888\n",
        f"{COOLING}/type": "cpufreq-cpu0\n",
        f"{COOLING}/cur_state": "0\n",
        "sys/class/net/end0/speed": "1000\n",
        "proc/net/route": ROUTE,
        "proc/meminfo": "MemTotal:        3901456 kB\nMemFree: 12 kB\n",
        "proc/uptime": "351735.47 234388.90\n",
    }
    assert read(tmp_path, files) == {
        "temperature_c": 51.111, "throttled": False, "undervoltage": None, "link_mbit": 1000,
        "ram_total_bytes": 3901456 * 1024, "uptime_s": 351735.47,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        (("40000", "83500"), 83.5),
        (("-274000", "45000"), 45.0),  # not connected
        (("", "45000"), 45.0),
        (("rubbish", "1e5"), None),
        (("999999999",), None),
    ],
)
def test_temperature_is_that_of_the_hottest_sensor_that_works(tmp_path, readings, expected):
    files = {f"sys/class/thermal/thermal_zone{i}/temp": text for i, text in enumerate(readings)}
    assert read(tmp_path, files)["temperature_c"] == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({f"{COOLING}/type": "cpufreq-cpu0", f"{COOLING}/cur_state": "2"}, True),
        ({f"{COOLING}/type": "thermal-cpufreq-0", f"{COOLING}/cur_state": "0"}, False),
        ({f"{COOLING}/type": "pwm-fan", f"{COOLING}/cur_state": "3"}, None),  # a fan that turns is no throttling
        ({f"{CPU}/cpufreq/scaling_max_freq": "1008000", f"{CPU}/cpufreq/cpuinfo_max_freq": "1800000"}, True),
        ({f"{CPU}/cpufreq/scaling_max_freq": "1800000", f"{CPU}/cpufreq/cpuinfo_max_freq": "1800000"}, False),
        ({f"{CPU}/cpufreq/scaling_max_freq": "1800000"}, None),
        # The owner's own limit, and a governor that says it does nothing.
        (
            {
                f"{CPU}/cpufreq/scaling_max_freq": "1200000", f"{CPU}/cpufreq/cpuinfo_max_freq": "1800000",
                f"{COOLING}/type": "cpufreq-cpu0", f"{COOLING}/cur_state": "0",
            },
            False,
        ),
        ({"sys/devices/platform/soc/soc:firmware/get_throttled": "50005"}, True),
        ({"sys/devices/platform/soc/soc:firmware/get_throttled": "50000"}, False),  # it has been, since boot
    ],
)  # fmt: skip
def test_throttled(tmp_path, files, expected):
    assert read(tmp_path, files)["throttled"] is expected


def test_throttle_counters_count_from_the_last_look(tmp_path):
    counter = f"{CPU}/thermal_throttle/core_throttle_count"
    assert [read(tmp_path, {counter: n})["throttled"] for n in ("7", "7", "9", "9")] == [None, False, True, False]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/class/hwmon/hwmon0/name": "rpi_volt", "sys/class/hwmon/hwmon0/in0_lcrit_alarm": "1"}, True),
        ({"sys/class/hwmon/hwmon0/name": "rpi_volt", "sys/class/hwmon/hwmon0/in0_lcrit_alarm": "0"}, False),
        ({"sys/class/hwmon/hwmon0/name": "nvme", "sys/class/hwmon/hwmon0/in0_lcrit_alarm": "1"}, None),
        ({"sys/devices/platform/soc/soc:firmware/get_throttled": "1"}, True),
        ({"sys/devices/platform/soc/soc:firmware/get_throttled": "zz"}, None),
    ],
)
def test_undervoltage(tmp_path, files, expected):
    assert read(tmp_path, files)["undervoltage"] is expected


SPEEDS = {"sys/class/net/end0/speed": "1000", "sys/class/net/end1/speed": "2500", "sys/class/net/usb0/speed": "100"}


@pytest.mark.parametrize(
    ("files", "address", "expected"),
    [
        ({"proc/net/route": ROUTE}, None, 1000),  # the lower metric: not the wireless one
        ({"proc/net/route": ROUTE}, "10.1.0.5", 100),
        ({"proc/net/route": ROUTE, "proc/net/if_inet6": ADDRESSES6}, "[fe80::1%usb0]", 100),
        ({"proc/net/route": ROUTE}, "fe80::2", 1000),
        ({"proc/net/route": ROUTE}, "10.0.0.5", 1000),
        ({"proc/net/route": ROUTE}, "192.168.7.7", 1000),
        ({"proc/net/route": ROUTE}, "0.0.0.0", 1000),
        ({"proc/net/route": ROUTE}, "pi1.lan", 1000),
        ({"proc/net/route": ROUTE}, "127.0.0.1", None),
        ({"proc/net/route": ROUTE}, "::1", None),
        ({"proc/net/ipv6_route": ROUTE6}, None, 2500),
        ({"proc/net/route": ROUTE, "sys/class/net/end0/speed": "-1"}, None, None),
        ({"proc/net/route": ROUTE.replace("end0", "../../../x")}, None, None),
        ({"proc/net/route": "rubbish\nrubbish\n"}, None, None),
        ({}, None, None),
    ],
)
def test_link_speed_of_the_agents_interface_or_the_default_route(tmp_path, files, address, expected):
    assert read(tmp_path, {**SPEEDS, **files}, address)["link_mbit"] == expected


def test_garbage_everywhere_is_none_and_never_raises(tmp_path):
    files = {"proc/meminfo": "MemTotal: lots", "proc/uptime": "ages", "proc/net/route": "\0" * 5000}
    assert set(read(tmp_path, files).values()) == {None}
    files = {
        "proc/net/route": "head\nend0 xyz 0 0 0 0 0 zz 0\n",
        "proc/net/if_inet6": "x\n",
        "proc/net/ipv6_route": "y",
    }
    assert set(read(tmp_path, files, "10.0.0.5").values()) == {None}
    assert set(read(tmp_path, files, "fe80::1").values()) == {None}


def test_on_this_machine_it_answers_whatever_there_is():
    facts = health()
    assert facts.ram_total_bytes > 1 << 20 and facts.uptime_s > 0
