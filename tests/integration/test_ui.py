"""The live page in a real browser, on simulated fleets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.integration.browser import TIMEOUT_MS, Visit, chromium
from tests.integration.fleet import Fleet, wait_for
from tests.integration.joined import Front, Node

HOSTILE = "<img src=x onerror=window.pwned=1>"
SIM = ("--engine", "sim", "--sim-step-ms", "10")
ADMIN_KEY, API_KEY = "operator-key", "client-key"
NODES = ["node-0", "node-1", "node-2"]
LONG = "5000"

TEXTS = (
    *("h1", "#connection", "dt", "dd", ".sub", "th", "#nodes .main", "#nodes [data-tone]"),
    *("#send", "#clear", "#chat-hint", "#model", ".empty", ".settings label"),
)

expect.set_options(timeout=TIMEOUT_MS)

# The contrast of an element's text with what is behind it, as WCAG 2 defines it.
CONTRAST = """(element) => {
  const rgb = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = rgb(color).slice(0, 3).map((value) => {
      const c = value / 255;
      return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let behind = element;
  while (rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const [light, dark] = [
    luminance(getComputedStyle(element).color),
    luminance(getComputedStyle(behind).backgroundColor),
  ].sort((a, b) => b - a);
  return (light + 0.05) / (dark + 0.05);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def fleet(browser: Browser, tiny_model: Path) -> Iterator[Fleet]:
    """Three nodes, whose model has a name that is markup."""
    arguments = ["--model", str(tiny_model), "--served-model-name", HOSTILE, "--nodes", "3", *SIM]
    with Fleet(*arguments) as fleet:
        wait_for(
            lambda: all(fleet.metric("mlxfleet_node_ready", node=node) for node in NODES),
            "the nodes",
        )
        yield fleet


@pytest.fixture
def visit(browser: Browser, fleet: Fleet) -> Iterator[Callable[..., Visit]]:
    """Opens pages of the fleet without keys; whatever a test does there, nothing goes wrong."""
    visits: list[Visit] = []

    def open_page(**settings: object) -> Visit:
        visits.append(Visit(browser, fleet, **settings))
        expect(visits[-1].page.locator("#connection")).to_have_text("Live")
        return visits[-1]

    yield open_page
    for opened in visits:
        assert opened.violations == []
        assert opened.outside == []
        opened.page.close()


def states(page: Page) -> dict[str, str]:
    """What the table of nodes says."""
    rows = page.locator("#nodes tbody tr").all()
    cells = [[cell.locator(".main").inner_text() for cell in r.locator("td").all()] for r in rows]
    return {row[0]: row[1] for row in cells}


def shows(page: Page, node: str, state: str) -> None:
    """Wait until a node is shown in a state."""
    row = page.locator("#nodes tbody tr", has_text=node)
    expect(row.locator("td").nth(1).locator(".main")).to_have_text(state)


def type_max_tokens(page: Page, value: str) -> None:
    """From the message to the limit and back, by keyboard."""
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    expect(page.locator("#max-tokens")).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type(value)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")


def test_the_page_loads_and_shows_every_node(visit: Callable[..., Visit]) -> None:
    opened = visit()
    expect(opened.page.locator("#nodes tbody tr")).to_have_count(len(NODES))
    assert states(opened.page) == dict.fromkeys(NODES, "ready")
    expect(opened.page.locator("#totals > div").first).to_contain_text("3 of 3")
    expect(opened.page.locator("#no-requests")).to_be_visible()
    assert {url.removeprefix(opened.url) for url in opened.requested} >= {"/ui", "/fleet"}
    assert opened.errors == []


def test_chat_by_keyboard_alone(visit: Callable[..., Visit]) -> None:
    opened = visit()
    page = opened.page
    page.evaluate("""() => {
      window.announced = [];
      new MutationObserver(() => window.announced.push(byId("announcer").textContent))
        .observe(byId("announcer"), { childList: true, characterData: true, subtree: true });
    }""")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_be_focused()
    outline = page.locator("#message").evaluate("(e) => getComputedStyle(e).outlineStyle")
    assert outline == "solid"
    type_max_tokens(page, "20")
    page.keyboard.type("Hello there")
    page.keyboard.press("Enter")
    answer = page.locator("#conversation .turn").nth(1)
    expect(answer.locator(".figures")).to_contain_text("20 tokens · ended at max tokens")
    assert "first token" in answer.locator(".figures").inner_text()
    assert "tokens/s" in answer.locator(".figures").inner_text()
    assert answer.locator(".said").inner_text().strip()
    expect(page.locator("#message")).to_be_focused()
    said = page.evaluate("window.announced")
    assert said[0] == "Answering"
    assert len(said) == 2
    assert opened.errors == []


def test_escape_stops_an_answer(visit: Callable[..., Visit], fleet: Fleet) -> None:
    page = visit().page
    page.locator("#message").focus()
    type_max_tokens(page, LONG)
    page.keyboard.type("Hello")
    page.keyboard.press("Enter")
    expect(page.locator("#requests tbody tr")).to_have_count(1)
    row = page.locator("#requests tbody tr").first
    expect(row).to_contain_text("decoding")
    expect(row).to_contain_text("interactive")
    expect(page.locator("#send")).to_have_text("Stop")
    page.keyboard.press("Escape")
    figures = page.locator("#conversation .turn .figures").nth(1)
    expect(figures).to_contain_text("stopped")
    expect(page.locator("#send")).to_have_text("Send")
    expect(page.locator("#no-requests")).to_be_visible()
    assert fleet.metric("mlxfleet_sequences_in_flight") == 0


def test_a_refusal_is_shown_and_the_message_is_kept(visit: Callable[..., Visit]) -> None:
    page = visit().page
    page.locator("#message").focus()
    type_max_tokens(page, "1000000")
    page.keyboard.type("Hello")
    page.keyboard.press("Enter")
    expect(page.locator("#conversation .error")).to_contain_text("context length")
    expect(page.locator("#message")).to_have_value("Hello")


def hostile(value: Any) -> Any:
    """The same JSON with markup in every text but those that the page compares."""
    match value:
        case dict():
            return {key: hostile(item) for key, item in value.items()}
        case list():
            return [hostile(item) for item in value]
        case str():
            return f"{HOSTILE}{value}"
        case _:
            return value


def test_markup_in_names_is_text(visit: Callable[..., Visit], fleet: Fleet) -> None:
    page = visit().page
    expect(page.locator("#model")).to_have_value(HOSTILE)
    expect(page.locator("#nodes-note")).to_have_text(HOSTILE)

    def answer(route: Route) -> None:
        body = hostile(route.fetch().json())
        if "requests" in body:
            fields = {"tokens": 1, "max_tokens": 2, "prompt_tokens": 1, "age_s": 1, "moves": 1}
            texts = dict.fromkeys(("id", "model", "node", "state", "priority"), HOSTILE)
            body = {"total": 1, "requests": [{**texts, **fields}]}
        for node in body.get("nodes", []):
            node["telemetry"] = {"thermal_state": HOSTILE, "memory_pressure": HOSTILE}
        route.fulfill(json=body)

    page.route("**/fleet**", answer)
    expect(page.locator("#requests tbody tr")).to_contain_text(HOSTILE)
    expect(page.locator("#nodes tbody tr").first).to_contain_text(f"{HOSTILE}node-0")
    expect(page.locator("#nodes tbody tr").first).to_contain_text(f"pressure {HOSTILE}")
    assert page.locator("img").count() == 0
    assert page.evaluate("window.pwned") is None


def test_telemetry_is_shown_where_it_is_known(visit: Callable[..., Visit]) -> None:
    page = visit().page
    sensors = {
        "gpu_temperature_c": 97.6,
        "cpu_temperature_c": 71.0,
        "thermal_state": 2,
        "memory_pressure": 1,
        "memory_total_bytes": 64_000_000_000,
        "memory_used_bytes": 48_000_000_000,
        "swap_used_bytes": 2_500_000_000,
    }

    def answer(route: Route) -> None:
        body = route.fetch().json()
        if "nodes" in body:
            body["nodes"][0] |= {"telemetry": sensors, "weight": 0.7, "slowdown": 1.3}
            body["nodes"][1] |= {"telemetry": None, "weight": 1.0, "slowdown": 1.0}
        route.fulfill(json=body)

    page.route("**/fleet**", answer)
    first, second = (page.locator("#nodes tbody tr").nth(i) for i in (0, 1))
    for text in ("GPU 98 °C", "serious", "48.0 of 64.0 GB", "pressure warning", "swap 2.5 GB"):
        expect(first).to_contain_text(text)
    expect(first).to_contain_text("70%")
    expect(first).to_contain_text("30% longer")
    expect(second).to_contain_text("100%")
    expect(second).not_to_contain_text("°C")


def test_a_router_that_is_gone_is_said_and_found_again(visit: Callable[..., Visit]) -> None:
    page = visit().page
    page.route("**/fleet**", lambda route: route.abort())
    connection = page.locator("#connection")
    expect(connection).to_contain_text("The router does not answer. Trying again in")
    expect(page.locator("#nodes tbody tr")).to_have_count(len(NODES))
    expect(page.locator("#announcer")).to_have_text("The router does not answer. Trying again.")
    page.unroute("**/fleet**")
    page.locator("#retry").click()
    expect(connection).to_have_text("Live")
    expect(page.locator("#announcer")).to_have_text("The router answers again")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(visit: Callable[..., Visit], scheme: str) -> None:
    page = visit(color_scheme=scheme, reduced_motion="reduce").page
    expect(page.locator("#nodes tbody tr")).to_have_count(len(NODES))
    background = page.locator("body").evaluate("(e) => getComputedStyle(e).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 3 * 128) == (scheme == "light")
    for text in TEXTS:
        assert page.locator(text).first.evaluate(CONTRAST) >= 4.5, text
    bar = page.locator("#nodes .bar > i").first
    assert bar.evaluate("(e) => getComputedStyle(e).transitionDuration") == "0s"


def test_the_theme_can_be_chosen_and_is_kept(visit: Callable[..., Visit]) -> None:
    page = visit(color_scheme="light").page
    color = "(e) => getComputedStyle(e).backgroundColor"
    light = page.locator("body").evaluate(color)
    page.locator("#theme").select_option("dark")
    dark = page.locator("body").evaluate(color)
    assert dark != light
    page.reload()
    assert page.locator("body").evaluate(color) == dark


def test_a_narrow_screen_needs_no_sideways_scrolling(visit: Callable[..., Visit]) -> None:
    page = visit(viewport={"width": 360, "height": 740}).page
    expect(page.locator("#nodes tbody tr")).to_have_count(len(NODES))
    wide = [*page.locator("#nodes").all(), *page.locator("html").all()]
    assert all(element.evaluate("(e) => e.scrollWidth") <= 360 for element in wide)
    assert page.get_by_role("row").count() > len(NODES)


class SimNode(Node):
    """`mlxfleet node` with the simulated engine."""

    command = ("node", *SIM)


@contextmanager
def guarded(tiny_model: Path) -> Iterator[Front]:
    """A front end with both keys and without a node."""
    keys = {"MLXFLEET_ADMIN_KEY": ADMIN_KEY, "MLXFLEET_API_KEY": API_KEY}
    with Front("--model", str(tiny_model), environment=keys) as front:
        yield front


def give_key(page: Page, name: str, key: str) -> None:
    """Type a key into the form that asks for it."""
    page.get_by_label(name, exact=True).fill(key)
    page.keyboard.press("Enter")


def test_a_key_that_is_typed_while_another_is_refused_stays(
    browser: Browser, tiny_model: Path
) -> None:
    with guarded(tiny_model) as front:
        page = Visit(browser, front).page
        field = page.get_by_label("Admin key", exact=True)
        expect(field).to_be_focused()
        held: list[Route] = []

        def hold(route: Route) -> None:
            held.append(route)

        page.route("**/fleet", hold, times=1)
        with page.expect_request("**/fleet"):
            give_key(page, "Admin key", "nonsense")
        field.fill(ADMIN_KEY)
        held[0].continue_()
        expect(page.locator("#fleet-key-error")).to_contain_text("does not accept")
        expect(field).to_have_value(ADMIN_KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#connection")).to_have_text("Live")


def test_nothing_is_shown_without_the_admin_key_and_lost_nodes_are(
    browser: Browser, tiny_model: Path
) -> None:
    with guarded(tiny_model) as front:
        assert front.get("/ui")[0] == 200
        assert [front.get(path)[0] for path in ("/fleet", "/fleet/requests")] == [401, 401]
        visit = Visit(browser, front)
        page = visit.page
        expect(page.get_by_label("Admin key", exact=True)).to_be_focused()
        expect(page.locator("#fleet")).to_be_hidden()
        for wrong in ("nonsense", API_KEY):
            give_key(page, "Admin key", wrong)
            expect(page.locator("#fleet-key-error")).to_contain_text("does not accept")
        give_key(page, "Admin key", ADMIN_KEY)
        expect(page.locator("#connection")).to_have_text("Live")
        expect(page.locator("#no-nodes")).to_be_visible()
        expect(page.locator("#chat-form")).to_be_hidden()
        give_key(page, "API key", API_KEY)
        expect(page.locator("#message")).to_be_focused()

        page.reload()  # The keys are still there.
        expect(page.locator("#no-nodes")).to_be_visible()
        expect(page.locator("#model")).to_have_value(tiny_model.name)
        assert page.evaluate("Object.keys(localStorage)") == []
        assert ADMIN_KEY not in json.dumps(visit.requested)

        arguments = ["--router", front.node_address, "--model", str(tiny_model)]
        with SimNode(*arguments, "--name", "studio-1") as node:
            shows(page, "studio-1", "ready")
            node.kill_all()
            shows(page, "studio-1", "dead")
            expect(page.locator("#announcer")).to_have_text("studio-1 is dead")
        page.locator("#forget-keys").click()
        expect(page.get_by_label("Admin key", exact=True)).to_be_focused()
        assert visit.outside == []
        assert visit.violations == []
        page.close()
