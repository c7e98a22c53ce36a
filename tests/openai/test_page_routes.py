"""What the page's routes answer, without a browser."""

from __future__ import annotations

import httpx
import pytest

from tests.openai.conftest import served

pytestmark = pytest.mark.anyio


async def test_its_files_need_no_key_and_its_figures_do() -> None:
    async with served(api_keys=("sesame",)) as (http, _):
        page = await http.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        names = [part.split('"')[0] for part in page.text.split('="page/')[1:]]
        assert {"main.js", "style.css", "icon.svg"} <= set(names)
        for name in names:
            assert (await http.get(f"/page/{name}")).status_code == 200
        assert (await http.get("/page/figures")).status_code == 401
        assert (await http.get("/page/%2e%2e/app.py")).status_code == 401
        told = await http.get("/page/figures", headers={"authorization": "Bearer sesame"})
        assert told.json()["model"] == "toy"
        assert told.json()["values"] == {"num_requests_running": 0.0}
        assert told.json()["seconds"] > 0


async def test_no_string_becomes_script_and_nothing_comes_from_elsewhere() -> None:
    async with served() as (http, _):
        for path in ("/", "/page/main.js"):
            policy = (await http.get(path)).headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "require-trusted-types-for 'script'; trusted-types 'none'" in policy
            assert "unsafe" not in policy
            assert "http" not in policy


async def test_what_has_not_changed_is_not_sent_again() -> None:
    async with served() as (http, _):
        first = await http.get("/page/style.css")
        again = await http.get("/page/style.css", headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == first.headers["content-security-policy"]


async def test_other_files_of_its_folder_are_not_served() -> None:
    async with served() as (http, _):
        for name in ("__init__.py", "README.md", "missing.js"):
            answer: httpx.Response = await http.get(f"/page/{name}")
            assert answer.status_code == 404
            assert "main.js" in answer.json()["error"]["message"]


async def test_an_api_alone_has_no_page() -> None:
    async with served(page=False, api_keys=("sesame",)) as (http, _):
        assert (await http.get("/")).status_code == 401
        key = {"authorization": "Bearer sesame"}
        assert (await http.get("/", headers=key)).status_code == 404
        assert (await http.get("/page/main.js", headers=key)).status_code == 404
        assert (await http.get("/v1/models", headers=key)).status_code == 200
