"""The playground's page, made with NiceGUI: fields for the act options, the latest result, and all that was tried.

NiceGUI serves its scripts, styles and fonts itself: the page needs no internet.
"""

from pathlib import Path
from typing import Any, Callable

from nicegui import app, ui

from harness.evaluation import GRID_SEED
from harness.playground.session import (
    Session,
    Tried,
    show_change,
    show_number,
    show_options,
    show_score,
    table,
)

HOST = "127.0.0.1"
MEDIA = "/media"
EPISODES = 5  # of a press of Run, until the user changes it: seconds on the small tasks
LOW, HIGH, STEP = -1.0, 4.0, 0.1  # of a slider; the field beside it takes any number that the config allows
COUNTS = (1, 2, 4, 8, 16, 32, 64)  # offered for whole numbers such as num_candidates, beside the run's own
SECONDS_BETWEEN_LOOKS = 0.2  # at the session, for new results
SECONDS_TO_SHUT_DOWN = 2  # what open pages get at Ctrl-C


def serve(session: Session, port: int, open_browser: bool) -> None:
    """Serves the page on this machine alone until Ctrl-C, which it raises again as KeyboardInterrupt."""
    app.config.socket_io_js_transports = ["websocket"]  # a tab that closes while it polls leaves a traceback
    app.add_media_files(MEDIA, session.media)
    app.on_startup(lambda: print(f"playground: http://{HOST}:{port}/ (Ctrl-C ends it)", flush=True))
    app.on_shutdown(session.close)
    ui.run(
        lambda: build(session),
        host=HOST,
        port=port,
        title=f"{session.run.algorithm.name} on {session.run.task.name}",
        favicon="🎚️",
        show=open_browser,
        reload=False,
        show_welcome_message=False,
        timeout_graceful_shutdown=SECONDS_TO_SHUT_DOWN,
    )


def build(session: Session) -> None:
    """The page of one browser tab; all tabs share the session."""
    ui.query("body").classes("bg-gray-100")
    with ui.column().classes("w-full max-w-6xl mx-auto gap-3"):
        with ui.row().classes("w-full items-baseline gap-4"):
            ui.label(f"{session.run.algorithm.name} on {session.run.task.name}").classes("text-xl font-bold")
            ui.label(str(session.run.folder)).classes("text-sm text-gray-600 break-all")
        with ui.row().classes("w-full items-stretch no-wrap gap-3"):
            with ui.card().classes("w-80 shrink-0"):
                show_state = _settings(session)
            with ui.card().classes("grow min-w-0"):
                latest = ui.refreshable(_latest)
                latest(session)
        history = ui.refreshable(_history)
        history(session)
    shown = {"version": session.version}

    def look() -> None:
        show_state()
        if session.version != shown["version"]:
            shown["version"] = session.version
            latest.refresh()
            history.refresh()

    ui.timer(SECONDS_BETWEEN_LOOKS, look)


# ---- The settings ----


def _settings(session: Session) -> Callable[[], None]:
    """The fields and buttons; returns what brings buttons and texts up to date."""
    fields = {name: _field(name, value) for name, value in session.options.items()}
    if not fields:
        ui.label(f"{session.run.algorithm.name} has no act options: other seeds are all there is to try.")
    with ui.row().classes("w-full no-wrap"):
        episodes = ui.number("episodes", value=EPISODES, min=1, format="%d").props("data-testid=episodes")
        seed = ui.number("first seed", value=GRID_SEED, min=0, format="%d").props("data-testid=seed")

    def start() -> None:
        session.start({name: field.value for name, field in fields.items()}, seed.value, episodes.value)
        show_state()

    with ui.row().classes("w-full no-wrap"):
        run = ui.button("Run", on_click=start).classes("grow").props("data-testid=run")
        stop = ui.button("Stop", on_click=session.stop).props("outline data-testid=stop")
    busy = ui.linear_progress(show_value=False).props("indeterminate")
    status = ui.label().classes("text-sm text-gray-700").props("data-testid=status")
    error = ui.label().classes("text-sm text-red-700 break-words").props("data-testid=error")

    def show_state() -> None:
        run.set_enabled(not session.busy)
        stop.set_enabled(session.busy)
        busy.set_visibility(session.busy)
        status.set_text(session.status)
        error.set_text(session.error or "")

    show_state()
    return show_state


def _field(name: str, value: Any) -> Any:
    """The element whose value is the option's, which is the run's own at first."""
    ui.label(name).classes("text-sm font-bold -mb-3")
    if isinstance(value, int):
        props = f'dense no-caps padding="2px 8px" data-testid={name}'
        return ui.toggle(sorted({*COUNTS, value}), value=value).props(props)
    with ui.row().classes("w-full items-center no-wrap"):
        number = ui.number(value=value, step=STEP).classes("w-16 shrink-0")
        number.props(f'dense data-testid={name} aria-label="{name}"')
        slider = ui.slider(min=min(LOW, value), max=max(HIGH, value), step=STEP).classes("grow mx-2")
        slider.bind_value(number).props(f"label data-testid={name}_slider")
    return number


# ---- The results ----


def _latest(session: Session) -> None:
    """Score, picture and curve after the last press of Run."""
    if session.tried:
        last, score_name = session.tried[-1], session.run.task.score_name
        with ui.row().classes("items-center no-wrap gap-6"):
            _text(show_number(last.row[score_name]), "score", "text-4xl font-bold")
            with ui.column().classes("gap-1"):
                ui.label(f"{score_name} at {show_options(last.cell.options)}").classes("text-sm")
                ui.label(show_score(last, score_name)).classes("text-sm")
        change = show_change(session.tried)
        if change:
            _text(change, "change", "text-sm text-blue-800")
        with ui.row().classes("w-full items-start no-wrap gap-4"):
            with ui.column().classes("w-1/2 min-w-0 gap-1"):
                _picture(session, last)
            if session.curve:
                picture = ui.element("img").classes("w-1/2 min-w-0")
                picture.props(f'src="{_url(session, session.curve)}" alt="curve" data-testid=curve')
    else:
        ui.label("The score, the curve and the picture of an episode appear here.").classes("text-gray-600")
        _text(session.no_pictures or "", "no_pictures", "text-sm text-gray-600")


def _picture(session: Session, last: Tried) -> None:
    """The drawn episode, or why there is none."""
    if last.picture is None:
        missing = "The first episode is being drawn." if session.busy else "The first episode was not drawn."
        _text(session.no_pictures or missing, "no_pictures", "text-sm text-gray-600")
        return
    video = ui.video(_url(session, last.picture), autoplay=True, muted=True, loop=True)
    video.classes("w-full").props("data-testid=picture")
    score = f"{session.run.task.score_name} {show_number(last.drawn_score)}"
    _text(f"the episode with seed {last.cell.seed}: {score}", "drawn_score", "text-sm")


def _history(session: Session) -> None:
    """The table of everything that was tried."""
    if session.tried:
        with ui.card().classes("w-full overflow-x-auto"):
            rows = table(session.tried)
            columns = [{"name": title, "label": title, "field": title} for title in rows[0]]
            ui.table(columns=columns, rows=rows, row_key="#").props("dense flat data-testid=table")


def _text(text: str, name: str, classes: str) -> None:
    ui.label(text).classes(classes).props(f"data-testid={name}")


def _url(session: Session, path: Path) -> str:
    return f"{MEDIA}/{path.relative_to(session.media).as_posix()}"
