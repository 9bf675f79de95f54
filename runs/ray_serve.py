"""Many replicas of the server behind one address, on all machines of a Ray cluster.

    python runs/ray_serve.py --model /shared/video-panda-7b --replicas 8 --gpus 1 --host 0.0.0.0

Every replica has its own model, batch and clip cache; Ray sends each request to one that is free. Only the replica that
received an upload knows the file, so clients should send data URLs, or URLs of allowed hosts. Run it on a machine of a
Ray cluster (`ray start`), or on any other: it then starts Ray there.
"""

import argparse
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

import ray
from ray import serve


def replica(model: Path | None, name: str, keys: tuple[str, ...], hosts: tuple[str, ...]) -> Any:
    """The function that builds the application in each replica."""

    def build() -> Any:
        from videopanda.inference.engine_thread import EngineThread
        from videopanda.inference.load import load
        from videopanda.serving.api import ServerSettings, create_app
        from videopanda.serving.fetch import FetchPolicy

        files = Path(tempfile.mkdtemp(prefix="videopanda-ray-"))
        return create_app(EngineThread(*load(model)), ServerSettings(name, files, keys=keys, fetch=FetchPolicy(hosts)))

    return build


def main() -> None:
    """Start the replicas and serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint folder, at the same path on all machines")
    parser.add_argument("--name", help="what clients call the model; default its folder's name")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each replica")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs of each replica")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-keys", type=Path, metavar="FILE", help="one key per line")
    parser.add_argument("--allow-host", action="append", default=[], metavar="HOST")
    options = parser.parse_args()
    keys = tuple(options.api_keys.read_text(encoding="utf-8").split()) if options.api_keys else ()
    name = options.name or (options.model.name if options.model else "nano")
    build = replica(options.model, name, keys, tuple(options.allow_host))
    deployment = serve.deployment(
        serve.ingress(build)(),
        name="videopanda",
        num_replicas=options.replicas,
        max_ongoing_requests=64,  # more wait in Ray, which then has a replica with room to choose
        ray_actor_options={"num_gpus": options.gpus, "num_cpus": options.cpus},
    )
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": options.host, "port": options.port})
    serve.run(deployment.bind(), route_prefix="/")
    print(f"{options.replicas} replicas on http://{options.host}:{options.port}", flush=True)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
