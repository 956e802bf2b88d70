"""The playground's page, made with NiceGUI: fields for the act options, the latest result, and all that was tried.

NiceGUI serves its scripts, styles and fonts itself: the page needs no internet.
"""

from pathlib import Path
from typing import Any

from nicegui import app, ui

from harness.evaluation import GRID_SEED
from harness.playground.controls import STEPS_PER_UNIT, Control
from harness.playground.results import Tried, show_change, show_number, show_options, show_score, table
from harness.playground.session import Session

HOST = "127.0.0.1"
MEDIA = "/media"
EPISODES = 5  # of a press of Run, until the user changes it: seconds on the small tasks
SECONDS_BETWEEN_LOOKS = 0.2  # at the session, for new results
SECONDS_TO_SHUT_DOWN = 2  # what open pages get at Ctrl-C


def serve(session: Session, port: int, open_browser: bool) -> None:
    """Serves the page on this machine alone until Ctrl-C, which it raises again as KeyboardInterrupt."""
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
                _settings(session)
            with ui.card().classes("grow min-w-0"):
                latest = ui.refreshable(_latest)
                latest(session)
        history = ui.refreshable(_history)
        history(session)
    shown = {"version": session.version, "no_pictures": session.no_pictures}

    def look() -> None:
        now = {"version": session.version, "no_pictures": session.no_pictures}
        if now != shown:
            shown.update(now)
            latest.refresh()
            history.refresh()

    ui.timer(SECONDS_BETWEEN_LOOKS, look)


# ---- The settings ----


def _settings(session: Session) -> None:
    fields = {control.name: _field(control) for control in session.controls}
    if not fields:
        ui.label(f"{session.run.algorithm.name} has no act options: other seeds are all there is to try.")
    with ui.row().classes("w-full no-wrap"):
        episodes = ui.number("episodes", value=EPISODES, min=1, format="%d").classes("w-1/2").mark("episodes")
        seed = ui.number("first seed", value=GRID_SEED, min=0, format="%d").classes("w-1/2").mark("seed")

    def run() -> None:
        values = {name: field.value for name, field in fields.items()}
        session.start(values, seed.value, episodes.value)

    with ui.row().classes("w-full no-wrap"):
        ui.button("Run", on_click=run).classes("grow").props("data-testid=run").bind_enabled_from(
            session, "busy", backward=lambda busy: not busy
        )
        ui.button("Stop", on_click=session.stop).props("outline data-testid=stop").bind_enabled_from(session, "busy")
    ui.linear_progress(show_value=False).props("indeterminate").bind_visibility_from(session, "busy")
    ui.label().classes("text-sm text-gray-700").props("data-testid=status").bind_text_from(session, "status")
    ui.label().classes("text-sm text-red-700 break-words").props("data-testid=error").bind_text_from(
        session, "error", backward=lambda error: error or ""
    )


def _field(control: Control) -> Any:
    """The element whose value is the option's."""
    ui.label(control.label).classes("text-sm font-bold -mb-3")
    if control.choices:
        props = f'dense no-caps padding="2px 8px" data-testid={control.name}'
        return ui.toggle(list(control.choices), value=control.value).props(props)
    with ui.row().classes("w-full items-center no-wrap"):
        number = ui.number(value=control.value, step=1 / STEPS_PER_UNIT).props(f"dense data-testid={control.name}")
        if control.bounds:
            low, high = control.bounds
            slider = ui.slider(min=low, max=high, step=1 / STEPS_PER_UNIT).classes("grow")
            slider.props(f'label markers=1 data-testid="{control.name}_slider"').bind_value(number)
            number.classes("w-16 shrink-0")
    if control.note:
        ui.label(control.note).classes("text-sm text-gray-600")
    return number


# ---- The results ----


def _latest(session: Session) -> None:
    """Picture and score of the last press of Run."""
    if not session.tried:
        ui.label("The episode's picture and its score appear here.").classes("text-gray-600")
    else:
        last, score_name = session.tried[-1], session.run.task.score_name
        ui.label(f"{show_number(last.row[score_name], score_name)}").classes("text-4xl font-bold").props(
            "data-testid=score"
        )
        ui.label(f"{score_name} at {show_options(last.options)}: {show_score(last, score_name)}").classes("text-sm")
        change = show_change(session.tried, score_name)
        if change:
            ui.label(change).classes("text-sm text-blue-800").props("data-testid=change")
        if last.picture:
            _picture(session, last)
    if session.no_pictures:
        ui.label(session.no_pictures).classes("text-sm text-gray-600").props("data-testid=no_pictures")


def _picture(session: Session, last: Tried) -> None:
    source = _url(session, last.picture)
    if last.picture.suffix == ".mp4":
        ui.video(source, autoplay=True, muted=True, loop=True).classes("w-full max-w-xl").props("data-testid=picture")
    else:
        ui.html(f'<img data-testid="picture" src="{source}" class="max-w-xl w-full">', sanitize=False)
    score = show_number(last.drawn_score, session.run.task.score_name)
    ui.label(f"the episode with seed {last.seed}: {session.run.task.score_name} {score}").classes("text-sm").props(
        "data-testid=drawn_score"
    )


def _history(session: Session) -> None:
    """Curve and table of everything that was tried."""
    if not session.tried:
        return
    with ui.row().classes("w-full items-start no-wrap gap-3"):
        if session.curve:
            with ui.card().classes("shrink-0"):
                ui.html(f'<img data-testid="curve" src="{_url(session, session.curve)}" width="480">', sanitize=False)
        with ui.card().classes("grow min-w-0 overflow-x-auto"):
            rows = table(session.tried, session.run.task.score_name)
            columns = [{"name": title, "label": title, "field": title} for title in rows[0]]
            ui.table(columns=columns, rows=rows, row_key="#").props("dense flat data-testid=table")


def _url(session: Session, path: Path) -> str:
    return f"{MEDIA}/{path.relative_to(session.media).as_posix()}"
