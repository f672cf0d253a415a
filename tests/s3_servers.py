"""Real S3 servers for tests, in an environment of their own: OpenStack Swift with s3api, and moto.

Swift checks signatures and stores what it is sent, on four loopback ports, without root, Debian
packages or memcached. moto, which is a mock, is there for what Swift lacks or has otherwise.
"""

import fcntl
import getpass
import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import botocore.config
import botocore.session

_PROJECT = Path(__file__).parents[1] / "pyproject.toml"
_SERVICES = ("object", "container", "account")
_START_S = 60.0


@dataclass(frozen=True)
class Server:
    """A running server and an account on it."""

    endpoint: str
    access_key: str
    secret: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use it, and to find nothing else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    @cache  # noqa: B019 - a server or two, which live as long as the tests
    def client(self):
        """Return a client that is not ours: the tests' own eyes."""
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret,
            config=botocore.config.Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


def install(folder: Path) -> Path:
    """Return an environment with both servers, made at the first call: about a minute.

    Raises:
        RuntimeError: with the reason, where it cannot be made.
    """
    wanted = tomllib.loads(_PROJECT.read_text())["dependency-groups"]["s3-servers"]
    # Two processes of tests begin at the same time: the second one waits for the first, and would
    # otherwise replace files of programs that run.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _installed(folder, wanted)


def _installed(folder: Path, wanted: list[str]) -> Path:
    environment, marker = folder / "environment", folder / "installed"
    if marker.is_file() and marker.read_text() == repr(wanted):
        return environment
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(environment)],
        [str(environment / "bin" / "pip"), "install", "--quiet", "--no-compile", *wanted],
    ):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{command[-1]}: {done.stderr.strip().splitlines()[-1:]}")
    marker.write_text(repr(wanted))
    return environment


@contextmanager
def swift(environment: Path, root: Path) -> Iterator[Server]:
    """Start Swift with its S3 API, its data in `root`; yield the administrator of its account."""
    ports = dict(zip((*_SERVICES, "proxy"), free_ports(4), strict=True))
    etc = root / "etc"
    for folder in (etc, root / "srv" / "d1"):
        folder.mkdir(parents=True)
    _configure(etc, root, ports)
    bin_ = environment / "bin"
    build = {**os.environ, "SWIFT_ETC": str(etc)}
    for name in _SERVICES:
        ring = [str(bin_ / "swift-ring-builder"), f"{name}.builder"]
        place = f"--region 1 --zone 1 --ip 127.0.0.1 --port {ports[name]} --device d1 --weight 1"
        for step in ("create 4 1 1", f"add {place}", "rebalance"):
            command = [*ring, *step.split()]
            subprocess.run(command, cwd=etc, env=build, check=True, capture_output=True)
    commands = [
        [str(bin_ / "python"), "-W", "ignore", str(bin_ / f"swift-{name}-server"), conf, "-v"]
        for name in ports
        for conf in [str(etc / f"{name}-server.conf")]
    ]
    with _running(commands, root, ports.values()):
        yield Server(f"http://127.0.0.1:{ports['proxy']}", "test:tester", "swiftly4e81")


@contextmanager
def moto(environment: Path, root: Path) -> Iterator[Server]:
    """Start the moto server. It knows no wrong credentials."""
    [port] = free_ports(1)
    command = [str(environment / "bin" / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with _running([command], root, [port]):
        yield Server(f"http://127.0.0.1:{port}", "test", "testing")


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def _running(commands: Sequence[list[str]], root: Path, ports) -> Iterator[None]:
    """Run servers until the block ends; yield when all of them listen."""
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        processes = []
        for number, command in enumerate(commands):
            log = stack.enter_context((root / f"{number}.log").open("wb"))
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        try:
            end = time.monotonic() + _START_S
            for port in ports:
                while not _listens(port):
                    if time.monotonic() > end or any(p.poll() is not None for p in processes):
                        logs = [path.read_text()[-500:] for path in sorted(root.glob("*.log"))]
                        raise RuntimeError(f"a server did not start: {logs}")
                    time.sleep(0.05)
            yield
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _configure(etc: Path, root: Path, ports: dict[str, int]) -> None:
    (etc / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = suffix\nswift_hash_path_prefix = prefix\n"
        "[storage-policy:0]\nname = default\ndefault = yes\n"
    )
    for name in _SERVICES:
        common = f"devices = {root / 'srv'}\nmount_check = false\ndisable_fallocate = true\n"
        (etc / f"{name}-server.conf").write_text(
            _defaults(etc, ports[name])
            + common
            + f"[pipeline:main]\npipeline = {name}-server\n"
            + f"[app:{name}-server]\nuse = egg:swift#{name}\n"
        )
    (etc / "proxy-server.conf").write_text(_defaults(etc, ports["proxy"]) + _PROXY)


def _defaults(etc: Path, port: int) -> str:
    return (
        f"[DEFAULT]\nswift_dir = {etc}\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\n"
        f"user = {getpass.getuser()}\nlog_level = WARNING\nlog_udp_host =\n"
    )


# A second user, who is no administrator of the account, may do what a container's ACL says.
_PROXY = """
[pipeline:main]
pipeline = catch_errors proxy-logging cache s3api tempauth bulk slo dlo proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
force_swift_request_proxy_log = false
s3_acl = false
dns_compliant_bucket_names = true
min_segment_size = 5242880
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = swiftly4e81 .admin
user_test_reader = reading
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
error_suppression_limit = 1
"""
