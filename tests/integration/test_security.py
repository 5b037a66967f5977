"""TLS, roles in certificates and the shared token, on real servers and as processes see them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme
from parameter_scene import parameters, server
from process_scene import ServiceCommand
from replay_scene import RUN, STARTS, WAIT, fill, handshake, inserted, inserter, make_chunk, shard, wait_until
from replay_scene import learner as sampler

from apex_learner.coordinator import Coordinator
from apex_learner.serving import CoordinatorServicer
from apexrl.config import ConfigError, SecurityConfig
from apexrl.transport import security
from apexrl.transport._generated.apex.v1 import coordinator_pb2_grpc
from apexrl.transport.coordinator_client import CoordinatorClient
from apexrl.transport.info_client import UnreachableError, fetch_info
from apexrl.transport.parameter_client import ParameterClient
from apexrl.transport.parameter_server import ParametersServicer
from apexrl.transport.security import CALLERS, Security


@pytest.fixture(autouse=True)
def plain_again() -> Iterator[None]:
    yield
    security.use(Security())


class Authority:
    """An authority and the files that it issues."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca_file)

    def certificate(self, file: str, *names: str) -> dict[str, str]:
        """Fields of the section for a certificate that carries ``names``."""
        issued = self._ca.issue_cert(*names)
        certificate, key = self._directory / f"{file}.pem", self._directory / f"{file}.key"
        issued.private_key_pem.write_to_path(key)
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return {
            "ca_file": str(self.ca_file),
            "certificate_file": str(certificate),
            "key_file": str(key),
        }


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def become(mode: str, files: dict[str, str], token_file: str = "") -> None:
    """Take an identity, for channels and servers to come."""
    security.use(Security.load(SecurityConfig(mode=mode, token_file=token_file, **files)))  # type: ignore[arg-type]


def test_with_tls_a_client_checks_the_server(authority: Authority, tmp_path: Path) -> None:
    become("tls", authority.certificate("server", "apex"))
    with shard() as service:
        become("tls", {"ca_file": str(authority.ca_file)})
        fill(service.address, 2)
        assert inserted(service.address) == 2 * STARTS
        (tmp_path / "other").mkdir()
        become("tls", {"ca_file": str(Authority(tmp_path / "other").ca_file)})
        with pytest.raises(UnreachableError):
            fetch_info(service.address, timeout_seconds=0.5)
        become("none", {})
        with pytest.raises(UnreachableError):
            fetch_info(service.address, timeout_seconds=0.5)


def test_a_server_under_another_name_is_not_believed(authority: Authority) -> None:
    become("tls", authority.certificate("server", "somebody.example"))
    with shard() as service:
        become("tls", {"ca_file": str(authority.ca_file)})
        with pytest.raises(UnreachableError):
            fetch_info(service.address, timeout_seconds=0.5)


def test_with_mtls_a_certificate_says_what_its_holder_may_call(authority: Authority) -> None:
    become("mtls", authority.certificate("replay", "apex"))
    with shard() as service:
        become("mtls", authority.certificate("actor", "apex-actor"))
        fill(service.address, 1)
        with pytest.raises(UnreachableError, match="apex-learner or apex-operator"):
            fetch_info(service.address, timeout_seconds=WAIT)
        become("mtls", authority.certificate("operator", "apex-operator"))
        assert inserted(service.address) == STARTS
        with inserter(service.address) as client:
            client.put([make_chunk(1)])
            wait_until(lambda: "apex-actor" in (client.waiting() or ""), "an operator may not insert")
        assert inserted(service.address) == STARTS
        # Without a certificate, or in plain text, there is not even a connection.
        become("tls", {"ca_file": str(authority.ca_file)})
        with pytest.raises(UnreachableError):
            fetch_info(service.address, timeout_seconds=0.5)


def test_a_token_is_demanded_and_sent(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("open sesame\n")
    become("none", {}, str(token))
    servicer = ParametersServicer(handshake(peer="learner"))
    servicer.publish(parameters(1, 1))
    with shard() as service, server(servicer.register()) as learner:
        fill(service.address, 1)
        for wrong in ("open sesam", None):
            token.write_text(wrong or "")
            become("none", {}, str(token) if wrong else "")
            with pytest.raises(UnreachableError, match="token"):
                fetch_info(service.address, timeout_seconds=WAIT)
            client = CoordinatorClient(learner.address)
            with pytest.raises(TimeoutError):
                client.get_status(timeout=0.3)
            client.close()
        token.write_text("open sesame")
        become("none", {}, str(token))
        assert inserted(service.address) == STARTS


def test_a_renewed_certificate_is_shown_without_a_restart(authority: Authority, tmp_path: Path) -> None:
    files = authority.certificate("server", "somebody.example")
    become("tls", files)
    with shard() as service:
        become("tls", {"ca_file": str(authority.ca_file)})
        with pytest.raises(UnreachableError):
            fetch_info(service.address, timeout_seconds=0.5)
        before = os.stat(files["certificate_file"]).st_mtime_ns
        authority.certificate("server", "apex")
        os.utime(files["certificate_file"], ns=(before + 10**9, before + 10**9))
        assert inserted(service.address) == 0


def renew(authority: Authority, files: dict[str, str], *names: str) -> None:
    """Put another certificate where a process has its own."""
    authority.certificate(Path(files["certificate_file"]).stem, *names)


def test_a_client_connects_again_with_a_renewed_certificate(authority: Authority) -> None:
    """A name that may not call stands for a certificate that has ended: both are refused until it is replaced."""
    become("mtls", authority.certificate("server", "apex", "apex-learner"))
    servicer = ParametersServicer(handshake(peer="learner"))
    servicer.publish(parameters(1, 1))
    coordinator = CoordinatorServicer(handshake(), Coordinator(RUN, 3, resumed=False, on_evaluation=lambda _: None))
    with (
        shard() as service,
        server(
            servicer.register(), lambda grpc: coordinator_pb2_grpc.add_CoordinatorServicer_to_server(coordinator, grpc)
        ) as serving,
    ):
        own = authority.certificate("own", "apex-nobody")
        become("mtls", own)
        asking = CoordinatorClient(serving.address)
        fetching = ParameterClient(serving.address, handshake(""))
        with inserter(service.address) as inserting, sampler(service.address) as sampling:
            for name, waits in (
                ("apex-operator", lambda: asking.waiting()),
                ("apex-actor", lambda: inserting.waiting()),
                ("apex-learner", lambda: sampling.waiting()),
                ("apex-relay", lambda: fetching.waiting()),
            ):
                if name == "apex-operator":
                    with pytest.raises(TimeoutError):
                        asking.get_status(timeout=0.5)
                wait_until(lambda waits=waits, name=name: name in (waits() or ""), f"{name} is asked for")
            inserting.put([make_chunk(1)])
            renew(authority, own, "apex-operator", "apex-actor", "apex-learner")
            assert asking.get_status(timeout=WAIT).epoch == 3
            assert inserting.flush(WAIT)
            assert fetching.wait_newer(None, timeout=WAIT) is not None
            assert sampling.wait_opened(WAIT) is not None
            sampling.update_priorities("replay", np.array([7], np.uint64), np.array([1.0], np.float32))
            assert sampling.updates.flush(WAIT)
            assert sampling.updates.stale == 1
        asking.close()
        fetching.close()


def test_a_client_follows_its_authority(authority: Authority, tmp_path: Path) -> None:
    become("tls", authority.certificate("server", "apex"))
    with shard() as service:
        address = service.address
        become("tls", {"ca_file": str(authority.ca_file)})
        client = inserter(address)
        with client as inserting:
            inserting.put([make_chunk(1)])
            assert inserting.flush(WAIT)
            service.stop(0.2)
            (tmp_path / "new").mkdir()
            new = Authority(tmp_path / "new")
            become("tls", new.certificate("server", "apex"))
            with shard(address):
                inserting.put([make_chunk(2)])
                wait_until(lambda: "cannot be reached" in (inserting.waiting() or ""), "the new authority is unknown")
                authority.ca_file.write_bytes(new.ca_file.read_bytes())
                assert inserting.flush(WAIT)


def test_certificates_that_are_being_replaced_do_not_stop_a_client(authority: Authority) -> None:
    become("mtls", authority.certificate("server", "apex"))
    with shard() as service:
        own = authority.certificate("own", "apex-actor")
        become("mtls", own)
        with inserter(service.address) as inserting:
            inserting.put([make_chunk(1)])
            assert inserting.flush(WAIT)
            Path(own["key_file"]).unlink()
            service.stop(0.2)
            become(
                "mtls",
                {
                    **own,
                    "key_file": str(authority.ca_file.parent / "server.key"),
                    "certificate_file": str(authority.ca_file.parent / "server.pem"),
                },
            )
            with shard(service.address):
                inserting.put([make_chunk(2)])
                assert inserting.flush(WAIT), "it goes on with the certificate that it has"


def test_a_process_takes_its_identity_from_its_configuration(authority: Authority, tmp_path: Path) -> None:
    files = authority.certificate("replay", "apex")
    config = tmp_path / "experiment.yaml"
    config.write_text("algorithm: {name: apex_dqn}\nreplay: {listen: '127.0.0.1:0'}\n")
    command = ServiceCommand("apex_replay", "replay shard is listening", config)
    options = ["--security.mode", "tls"]
    for name, path in files.items():
        options += [f"--security.{name.replace('_', '-')}", path]
    with command.running(*options) as (_, address):
        become("tls", {"ca_file": str(authority.ca_file)})
        fill(address, 1)
        assert inserted(address) == STARTS
    missing = command.ended("--security.mode", "tls", "--security.ca-file", "/no/such/file")
    assert missing.returncode == 2
    assert "security.ca_file /no/such/file cannot be read: No such file or directory" in missing.stderr
    nothing_to_show = command.ended("--security.mode", "tls", "--security.ca-file", str(authority.ca_file))
    assert nothing_to_show.returncode == 2
    assert "security.certificate_file is ''" in nothing_to_show.stderr


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ca_file": "x"}, r"security\.ca_file is 'x', must be empty while security\.mode is 'none'"),
        ({"mode": "tls"}, r"security\.ca_file is ''"),
        ({"mode": "tls", "ca_file": "x", "key_file": "y"}, r"security\.certificate_file is '', .*key_file is given"),
        ({"mode": "mtls", "ca_file": "x"}, r"security\.certificate_file is '', must be a file while .* 'mtls'"),
        ({"mode": "tls", "ca_file": "x", "server_name": ""}, r"security\.server_name is ''"),
    ],
)
def test_a_section_that_cannot_work_names_the_field(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SecurityConfig(**fields)  # type: ignore[arg-type]


def test_a_token_must_be_one_printable_line(tmp_path: Path) -> None:
    token = tmp_path / "token"
    for content in (b"", b"\n", b"two\nlines", b"\xff"):
        token.write_bytes(content)
        with pytest.raises(ConfigError, match=r"security\.token_file .* one line of printable ASCII"):
            Security.load(SecurityConfig(token_file=str(token)))


def test_every_call_of_the_protos_has_its_callers() -> None:
    from apexrl.transport import coordinator_pb2, parameters_pb2, replay_pb2

    services = [
        service
        for module in (coordinator_pb2, parameters_pb2, replay_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    ]
    calls = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert calls == set(CALLERS)
