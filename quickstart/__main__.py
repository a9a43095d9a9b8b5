"""What `make quickstart` and `make down` run: one machine as a small Polder installation.

Every step looks at what is there and does only what is missing, so that running it twice repairs.
"""

import functools
import http.client
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from devcluster.daemon import DaemonError
from devcluster.image import hello_image, web_image
from devcluster.installation import EDGECTL, CommandError, Installation, Ports
from devcluster.preflight import missing, reason
from quickstart.steps import Steps

ROOT = Path(__file__).resolve().parents[1]
DIRECTORY = Path(os.environ.get("POLDER_QUICKSTART_DIR", "/var/lib/polder-quickstart"))
PORTS = Ports(operator=7443, join=7444, metrics=7480)
NODE = "box-1"
LOCAL = "127.0.0.1:7446"
HELLO_PORT = 18080
PAGE_TIMEOUT_S = 20.0


def main() -> int:
    match sys.argv[1:]:
        case ["up"]:
            action = up
        case ["down"]:
            action = down
        case _:
            print("usage: python -m quickstart up|down", file=sys.stderr)
            return 2
    lacking = missing()
    if lacking and action is up:
        print(f"quickstart {reason(lacking)}", file=sys.stderr)
        return 1
    if os.geteuid() != 0:
        print("quickstart needs root: containers and their network do", file=sys.stderr)
        return 1
    try:
        action()
    except (CommandError, DaemonError, OSError, RuntimeError) as error:
        print(f"\nquickstart failed: {error}", file=sys.stderr)
        print(f"Logs are in {DIRECTORY}. `make down` clears everything away.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; `make quickstart` goes on, `make down` clears away", file=sys.stderr)
        return 130
    return 0


def installation() -> Installation:
    made = Installation(DIRECTORY, PORTS)
    made.agent(NODE, settings=f'local_listen = "{LOCAL}"\nlocal_advertise = "127.0.0.1"\n')
    return made


def up() -> None:
    """Start everything and show that it works."""
    began = time.monotonic()
    DIRECTORY.mkdir(parents=True, exist_ok=True, mode=0o700)
    polder = installation()
    agent = polder.agents[NODE]
    assert agent.containerd is not None
    containerd = agent.containerd
    steps = Steps(total=8)
    steps.run("a containerd of its own", containerd.start)
    steps.run(
        "small web server images, built here",
        lambda: containerd.import_images([hello_image(), web_image()]),
    )
    steps.run("the orchestrator, with its own CA", polder.start_orchestrator)
    steps.run("a provider and a site", polder.apply_site)
    steps.run("the agent, joined with a single-use token", lambda: start_agent(polder))
    hello = str(ROOT / "examples" / "hello.yaml")
    steps.run("edgectl apply -f examples/hello.yaml", lambda: polder.edgectl("apply", "-f", hello))
    steps.run("waiting until it is ready", lambda: wait_ready(polder), chatty=True)
    page = steps.run(f"its page on http://127.0.0.1:{HELLO_PORT}/", fetch_page)
    print(f"\n  {page.strip()}\n")
    subprocess.run([EDGECTL, "get", "nodes,workloads"], env=polder.environment(), check=True)
    print(f"\nIt all runs; that took {time.monotonic() - began:.1f} s. Go on with:\n")
    print(f"  export EDGECTL_CONFIG={polder.admin_context}")
    print(f"  export PATH={Path(EDGECTL).parent}:$PATH")
    print("  edgectl describe workload/hello")
    print("  edgectl logs -f workload/hello")
    print(f"  edgectl --site-endpoint {LOCAL} get replicas    # the node itself answers\n")
    print("`make down` stops and removes everything that this started.")


def start_agent(polder: Installation) -> None:
    polder.join(NODE)
    polder.start_agent(NODE)
    polder.edgectl("wait", f"node/{NODE}", "--for=ready", "--timeout", "30s")


def wait_ready(polder: Installation) -> None:
    """edgectl's own progress goes to the terminal."""
    command = [EDGECTL, "wait", "workload/hello", "--for=ready", "--timeout", "60s"]
    done = subprocess.run(command, env=polder.environment(), stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        described = polder.edgectl("describe", "workload/hello", check=False)
        raise RuntimeError(f"the workload is not ready:\n{described}")


def fetch_page() -> str:
    deadline = time.monotonic() + PAGE_TIMEOUT_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", HELLO_PORT, timeout=2)
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            body = response.read().decode()
            if response.status == 200:
                return body
            why = f"HTTP {response.status}"
        except OSError as error:
            why = str(error)
        finally:
            connection.close()
        if time.monotonic() > deadline:
            raise RuntimeError(f"port {HELLO_PORT} does not serve the page: {why}")
        time.sleep(0.1)


def down() -> None:
    """Stop everything, in whatever state it is, and remove its directory."""
    if not DIRECTORY.exists():
        print("Nothing to stop: there is no quickstart on this machine.")
        return
    polder = installation()
    agent = polder.agents[NODE]
    steps = Steps(total=4)
    steps.run("stopping the agent", agent.daemon.stop)
    if agent.containerd is not None:
        remove = functools.partial(agent.containerd.stop, wipe=True)
        steps.run("removing its containers, network and containerd", remove)
    steps.run("stopping the orchestrator", polder.stop_orchestrator)
    steps.run(f"removing {DIRECTORY}", lambda: shutil.rmtree(DIRECTORY))


if __name__ == "__main__":
    sys.exit(main())
