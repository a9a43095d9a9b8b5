"""The second half of `bench fleet`: a node dies, a region dies, and agents come and go for long."""

import asyncio
import time

import grpc

from bench.fleet_bench import Bench, Window
from bench.fleet_crew import Turn
from bench.fleet_measure import peak_per_s, percentile_or_none, slope
from bench.fleet_members import PORT, Operator

DEAD_LIMIT_S = 40.0
BACK_LIMIT_S = 120.0
ASK_EVERY_S = 0.1
SETTLE_S = 60.0
SOAK_EVERY_S = 10.0
SOAK_SAMPLE_S = 5.0
CUT_PER_MINUTE = 0.05


async def dead_node(bench: Bench) -> None:
    """A process of agents stops; its connections stay open, so that nothing but silence tells."""
    nodes = bench.crew.doomed.names
    if not nodes:
        return
    bench.say(f"{len(nodes)} nodes fall silent")
    operators = [bench.operator(region) for region in bench.members.living]
    await bench.crew.doomed.ask("beaten", DEAD_LIMIT_S + 60)
    started = time.monotonic()
    bench.crew.doomed.freeze()
    asked = [_noticed(op, node, started) for op in operators for node in nodes]
    noticed = await asyncio.gather(*asked)
    bench.crew.doomed.thaw()
    seen = [took for took in noticed if took is not None]
    if len(seen) < len(noticed):
        bench.miss(f"{len(noticed) - len(seen)} of {len(noticed)} silent nodes were not noticed")
    bench.result |= {
        "dead_node_detected_s": round(max(seen), 2) if len(seen) == len(noticed) else None,
        "dead_node_detected_p50_s": _rounded(percentile_or_none(seen, 0.5)),
    }
    await bench.until(
        lambda found: found["connected"] >= bench.result["connected"], BACK_LIMIT_S, "coming back"
    )


async def _noticed(operator: Operator, node: str, started: float) -> float | None:
    """Seconds until the member does not call the node ready any more; None: it never did so."""
    while time.monotonic() - started < DEAD_LIMIT_S:
        try:
            if (await operator.status("Node", node))["ready"] is not True:
                return time.monotonic() - started
        except grpc.RpcError:
            pass  # asked again until the time is over
        await asyncio.sleep(ASK_EVERY_S)
    return None


async def lose_region(bench: Bench) -> None:
    """The leader's region dies: how its agents come back, and that no plan changes by it."""
    if bench.options.members < 2:
        return
    before = await bench.crew.generations()
    connected = (await bench.crew.look())["connected"]
    await bench.crew.turns()
    lost = bench.members.leader()
    bench.say(f"killing {lost.name}, which leads")
    window = Window.open(bench)
    killed = time.monotonic()
    await asyncio.to_thread(lost.kill)
    await asyncio.sleep(1.0)  # until the first have noticed, everybody seems connected
    await bench.until(
        lambda seen: seen["connected"] >= connected and not seen["members"].get(lost.name),
        BACK_LIMIT_S,
        "failing over",
    )
    turns = await bench.crew.turns()
    back = failover_times(turns, lost.name, killed)
    seen = await bench.crew.look()
    bench.result |= {
        "failover_agents": len(back),
        "failover_p50_s": _rounded(percentile_or_none(back, 0.5)),
        "failover_p99_s": _rounded(percentile_or_none(back, 0.99)),
        "failover_last_s": _rounded(max(back, default=None)),
        "failover_peak_per_s": peak_per_s(
            turn.at for turn in turns if turn.connected and turn.at >= killed
        ),
        "failover_connected": seen["connected"],
        "failover_use": window.close(),
    }
    # What a new leader might do wrong it does after it has waited out a liveness period.
    await asyncio.sleep(min(SETTLE_S, bench.options.steady_s))
    after = await bench.crew.generations()
    bench.result["plan_changes"] = sum(after[node] != before[node] for node in before)


def failover_times(turns: list[Turn], lost: str, killed: float) -> list[float]:
    """For each node whose session ended with the member, how long after its death it had one."""
    away: dict[str, float] = {}
    for turn in sorted(turns, key=lambda turn: turn.at):
        if turn.at < killed:
            continue
        if turn.connected and turn.member != lost and turn.node not in away:
            away[turn.node] = turn.at - killed
    return list(away.values())


async def soak(bench: Bench) -> None:
    """Agents come and go; the memory of those that serve them is watched."""
    minutes = bench.options.soak_minutes
    if minutes <= 0:
        return
    bench.say(f"soak: {minutes:g} minutes, 5 percent of the agents reconnect in each")
    living = bench.members.living
    samples: dict[str, list[tuple[float, float]]] = {region.name: [] for region in living}
    total: list[tuple[float, float]] = []
    window = Window.open(bench)
    await bench.crew.turns()
    started = time.monotonic()
    cutting = asyncio.create_task(_cut_some(bench, started + minutes * 60))
    told = started
    while (now := time.monotonic()) < started + minutes * 60:
        minute = (now - started) / 60
        rss = {region.name: region.use().rss_mb for region in living}
        for name, value in rss.items():
            samples[name].append((minute, value))
        total.append((minute, sum(rss.values())))
        if now - told > 60:
            told = now
            bench.say(f"soak: minute {minute:.1f}, RSS {rss} MB")
        await asyncio.sleep(min(SOAK_SAMPLE_S, minutes * 60 / 20))
    cut = await cutting
    seen = await bench.until(
        lambda found: found["connected"] >= bench.result["connected"], BACK_LIMIT_S, "after soak"
    )
    line, later = slope(total), slope(total[len(total) // 2 :])
    grown = total[-1][1] - sum(bench.rss_before_mb[region.name] for region in living)
    bench.result |= {
        "rss_slope_mb_per_min": round(line.per_unit, 4),
        "rss_slope_error_mb_per_min": round(line.error, 4),
        "rss_slope_is_zero": line.is_zero,
        "soak": {
            "minutes": minutes,
            "second_half_mb_per_min": [round(later.per_unit, 4), round(later.error, 4)],
            "kb_per_agent": round(grown * 1024 / max(1, bench.result["connected"]), 1),
            "cut": cut,
            "reconnected": sum(turn.connected for turn in await bench.crew.turns()),
            "connected": seen["connected"],
            "rss_mb": [[round(x, 2), round(y, 1)] for x, y in thinned(total, 60)],
            "by_member": {
                name: [round(slope(s).per_unit, 4), round(slope(s).error, 4)]
                for name, s in samples.items()
            },
            **window.close(),
        },
    }


async def _cut_some(bench: Bench, ends: float) -> int:
    """5 percent each minute, a few at a time. Returns how many."""
    share = len(bench.crew.names) * CUT_PER_MINUTE * SOAK_EVERY_S / 60
    cut, owed = 0, 0.0
    while time.monotonic() < ends:
        owed += share
        cut += await bench.crew.cut(int(owed), PORT)
        owed -= int(owed)
        await asyncio.sleep(min(SOAK_EVERY_S, max(0.1, ends - time.monotonic())))
    return cut


def thinned(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many of them, evenly."""
    step = max(1, -(-len(points) // most))
    return points[::step]


def _rounded(value: float | None) -> float | None:
    return round(value, 2) if value is not None else None
