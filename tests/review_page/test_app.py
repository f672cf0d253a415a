"""The page's server: who it answers, and what it takes for a decision."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.driver.chosen import Choice, choose
from patchlake.pipeline.driver.dataset import open_table
from patchlake.pipeline.driver.desk import Session, Subject
from patchlake.pipeline.driver.pictured import Pictures
from patchlake.pipeline.review_page.app import make_app
from patchlake.pipeline.review_page.desk import Desk
from patchlake.pipeline.review_page.guard import WRITE_HEADER, Keys
from patchlake.pipeline.reviews.table import read
from patchlake.pipeline.score_table.parts import source_of, versions
from patchlake.pipeline.storage.folder import Folder

KEYS = Keys(8123)
HERE = "http://127.0.0.1:8123"
PATHS = ["/", "/images", "/photo/0", "/heatmap/0", "/static/review.js"]


@pytest.fixture
def session(scores: Path, tmp_path: Path) -> Iterator[Session]:
    table = Folder.at(str(scores))
    (version,) = versions(table)
    images, _ = choose(open_table(table, version), Choice(count=5), lambda rows: rows)
    reviews = Folder.at(str(tmp_path / "reviews"))
    subject = Subject(reviews, "ann", table.root, version, source_of(table))
    found = Session(subject, images, Pictures.of(table, version, StorageSettings()))
    assert isinstance(found, Desk)
    yield found
    found.close()


@pytest.fixture
def ended() -> list[bool]:
    return []


@pytest.fixture
def client(session: Session, ended: list[bool]) -> TestClient:
    """Somebody who has nothing but the address."""
    app = make_app(session, KEYS, lambda: ended.append(True))
    return TestClient(app, HERE, headers={"host": "127.0.0.1:8123"})


@pytest.fixture
def visitor(client: TestClient) -> TestClient:
    """A browser that has opened the link."""
    assert client.get(KEYS.link).status_code == 200
    return client


def _decision(**changed: object) -> dict[str, object]:
    return {"number": 0, "verdict": "good", "regions": None} | changed


WRITING = {WRITE_HEADER: KEYS.write, "origin": HERE}


@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_nothing_is_answered(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 403
    assert client.get(f"{path}?token={KEYS.write}").status_code == 403
    assert client.get(f"{path}?token={KEYS.read[:-1]}").status_code == 403
    assert client.get(path, headers={"cookie": f"{KEYS.cookie}=x"}).status_code == 403
    assert client.get(path, headers={"cookie": f"other={KEYS.read}"}).status_code == 403
    assert "set-cookie" not in client.get(f"/?token={KEYS.read}x").headers


def test_a_link_with_two_tokens_is_none(client: TestClient) -> None:
    assert client.get(f"/?token=x&token={KEYS.read}").status_code == 403


def test_the_link_sets_a_cookie_that_opens_the_rest(client: TestClient) -> None:
    cookie = client.get(KEYS.link).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Path=/" in cookie
    for path in PATHS:
        assert client.get(path).status_code == 200, path
    # The link's token is for the page only.
    client.cookies.clear()
    assert client.get(f"/images?token={KEYS.read}").status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example:8123", "127.0.0.1", "127.0.0.1:8124", "", "0.0.0.0:8123"]
)
def test_another_host_is_refused_with_the_token_too(visitor: TestClient, host: str) -> None:
    assert visitor.get("/images", headers={"host": host}).status_code == 421
    assert visitor.get(KEYS.link, headers={"host": host}).status_code == 421


def test_localhost_is_this_host(visitor: TestClient) -> None:
    assert visitor.get("/images", headers={"host": "localhost:8123"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {WRITE_HEADER: KEYS.write},
        {"origin": HERE},
        {"origin": HERE, WRITE_HEADER: KEYS.read},
        {"origin": "http://evil.example", WRITE_HEADER: KEYS.write},
        {"origin": "null", WRITE_HEADER: KEYS.write},
        {"origin": "http://127.0.0.1:9999", WRITE_HEADER: KEYS.write},
        {"origin": HERE, WRITE_HEADER: KEYS.write, "sec-fetch-site": "cross-site"},
        {"origin": HERE, WRITE_HEADER: KEYS.write, "sec-fetch-site": "same-site"},
    ],
)
def test_nothing_but_the_page_can_decide(
    visitor: TestClient, session: Session, ended: list[bool], headers: dict
) -> None:
    for path in ("/decide", "/done"):
        assert visitor.post(path, json=_decision(), headers=headers).status_code == 403
    assert session.decisions == 0
    assert not ended
    assert not len(read(session.subject.reviews))


def test_the_page_without_its_cookie_cannot_decide(client: TestClient, session: Session) -> None:
    assert client.post("/decide", json=_decision(), headers=WRITING).status_code == 403
    assert session.decisions == 0


def test_every_answer_tells_the_browser_to_trust_nothing_else(visitor: TestClient) -> None:
    answers = [visitor.get(path) for path in (*PATHS, "/nothing", "/photo/99")]
    answers += [visitor.post("/decide", content=b"x", headers=WRITING)]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in answer.headers


def test_the_page_has_no_script_of_its_own_and_loads_nothing_from_elsewhere(
    visitor: TestClient,
) -> None:
    page = visitor.get("/").text
    assert re.findall(r"<script[^>]*>", page) == ['<script src="/static/review.js" defer>']
    assert not re.search(r"\son\w+=|javascript:|style=", page)
    names = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert names
    for name in names:
        assert visitor.get(name).status_code == 200
    files = page + visitor.get("/static/review.js").text + visitor.get("/static/review.css").text
    assert set(re.findall(r"https?://[^\s\"')]+", files)) <= {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in files


@pytest.mark.parametrize(
    "path",
    [
        *("/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py"),
        *("/static//etc/passwd", "/static/page.html", "/static/", "/photo/-1", "/photo/0/../1x"),
        *("/photo/99999999999999999999", "/photo/a", "/heatmap/5", "/templates/page.html"),
    ],
)
def test_no_path_leads_out(visitor: TestClient, path: str) -> None:
    assert visitor.get(path).status_code == 404


def test_a_decision_is_written_when_the_answer_comes(visitor: TestClient, session: Session) -> None:
    image = session.images[1]
    assert visitor.get("/photo/1").headers["content-type"] == "image/jpeg"
    box = {"x": 3, "y": 4, "width": 10, "height": 12}
    said = _decision(number=1, verdict="defective", regions=[box])
    assert visitor.post("/decide", json=said, headers=WRITING).json() == {"saved": 1}
    (row,) = read(session.subject.reviews).to_pylist()
    told = {name: row[name] for name in ("image_id", "group", "verdict", "regions", "reviewer")}
    assert told == {
        "image_id": image.image_id,
        "group": image.group,
        "verdict": "defective",
        "regions": [box],
        "reviewer": "ann",
    }
    for name in ("source_path", "source_row", "model_id", "p_value", "is_anomalous"):
        assert row[name] == getattr(image, name), name
    assert row["image_score"] == pytest.approx(image.image_score)
    assert row["root"] == session.subject.root
    assert (row["scores"], row["version"]) == (session.subject.scores, session.subject.version)
    assert re.fullmatch(r"[0-9a-f]{64}", row["sha256"])
    listed = visitor.get("/images").json()
    assert [card["decision"] for card in listed] == [
        *(None, {"verdict": "defective", "regions": [box]}, None, None, None)
    ]


def test_of_several_decisions_the_last_one_counts(visitor: TestClient, session: Session) -> None:
    for verdict in ("good", "unsure", "defective", "good"):
        visitor.post("/decide", json=_decision(verdict=verdict), headers=WRITING)
    rows = read(session.subject.reviews).to_pylist()
    assert [row["verdict"] for row in rows] == ["good", "unsure", "defective", "good"]
    times = [row["reviewed_at"] for row in rows]
    assert times == sorted(set(times))
    reviewed = session.reviewed
    assert (reviewed.decisions, reviewed.good, reviewed.defective, reviewed.left) == (4, 1, 0, 4)
    # Nobody has looked: its content is not known.
    assert rows[0]["sha256"] is None


BOX = {"x": 0, "y": 0, "width": 5, "height": 5}


@pytest.mark.parametrize(
    "said",
    [
        *(_decision(verdict="bad"), _decision(verdict=None), _decision(number="0"), [], "x", None),
        *(_decision(number=-1), _decision(number=True), _decision(more=1), {"number": 0}),
        *(_decision(regions=[BOX | change]) for change in ({"x": -1}, {"width": 0}, {"x": 0.5})),
        *(_decision(regions=[BOX | change]) for change in ({"x": "1"}, {"x": None}, {"y": 2**31})),
        *(_decision(regions=[BOX | change]) for change in ({"width": 4000}, {"y": 4000}, {"z": 1})),
        *(_decision(regions=[BOX] * 101), _decision(regions={}), _decision(regions=[[0, 0, 5, 5]])),
    ],
)
def test_what_is_no_decision_is_refused(
    visitor: TestClient, session: Session, said: object
) -> None:
    answer = visitor.post("/decide", json=said, headers=WRITING)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert not len(read(session.subject.reviews))


def test_no_bytes_are_a_decision_but_json_of_one(visitor: TestClient, session: Session) -> None:
    for content in (b"", b"{", b"\xff\xfe", b"[" * 60_000, b'{"number": NaN}'):
        answer = visitor.post("/decide", content=content, headers=WRITING)
        assert answer.status_code == 400, content[:10]
    assert visitor.post("/decide", json=_decision(number=5), headers=WRITING).status_code == 404
    assert session.decisions == 0


def test_a_huge_body_is_refused(visitor: TestClient) -> None:
    padded = json.dumps(_decision()).encode() + b" " * 70_000
    assert visitor.post("/decide", content=padded, headers=WRITING).status_code == 413


def test_a_disk_that_is_gone_is_told_and_nothing_is_counted(
    visitor: TestClient, session: Session, tmp_path: Path
) -> None:
    (tmp_path / "reviews").write_text("a file where the folder was to be")
    answer = visitor.post("/decide", json=_decision(), headers=WRITING)
    assert answer.status_code == 503
    assert "not written" in answer.json()["error"]
    assert session.decisions == 0
    (tmp_path / "reviews").unlink()
    assert visitor.post("/decide", json=_decision(), headers=WRITING).status_code == 200


def test_hostile_names_stay_text(session: Session) -> None:
    hostile = "</title><script>alert(1)</script>"
    session.subject = Subject(
        session.subject.reviews, hostile, hostile, "abc", session.subject.root
    )
    app = make_app(session, KEYS, lambda: None)
    page = TestClient(app, HERE, headers={"host": "127.0.0.1:8123"}).get(KEYS.link).text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_the_list_is_json_that_no_browser_takes_for_a_page(visitor: TestClient) -> None:
    answer = visitor.get("/images")
    assert answer.headers["content-type"] == "application/json"
    assert len(json.loads(answer.text)) == 5


def test_done_ends_the_session(visitor: TestClient, ended: list[bool]) -> None:
    assert visitor.get("/done").status_code == 405
    assert visitor.post("/done", json={}, headers=WRITING).json() == {"done": True}
    assert ended == [True]
