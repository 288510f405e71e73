"""What a user sees of a run: while it goes on, from another terminal, and after it ended or was killed."""

import contextlib
import fcntl
import io
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

import audits
import runs
import tiny
from holdfast import activity, cli, dashboard, disk, display, sketch, speech, verdict
from holdfast.activity import Activity, Board, Task, Word
from holdfast.following import Reader
from holdfast.problem import Problem
from holdfast.progress import Progress
from holdfast.units import lasting

ESCAPE = "\x1b]0;owned\x07\x1b[2J[red]‮"


class Terminal(io.StringIO):
    """A file that is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def cells(seconds: dict[str, float], harm: Callable[[str, str], tuple] = lambda *_: (0.0, 0.2, 0.4, 0.6)) -> list[Any]:
    """Cells of the simulated run, and what each took."""
    made = []
    for name, took in seconds.items():
        subject, attack, seed = name.split(".")
        made.append((runs.cell(subject, attack, int(seed), runs.clock(*harm(subject, attack))), took))
    return made


def saved(folder: Path, found: list[Any], **changes: Any) -> Path:
    """A run of two subjects under two attacks and a control, with these cells finished."""
    told = runs.manifest(
        [runs.subject("twin"), runs.subject("lox", "twin"), runs.subject("expo", "twin", control=True)],
        [runs.attack("slow"), runs.attack("quick"), runs.attack("noise", negative_control=True)],
    ).model_copy(update={"version": "0.1.0"} | changes)
    run = runs.save(folder, told, [])
    plan = run.read("recipe.json")
    plan["subjects"][2]["control"], plan["attacks"][2]["negative_control"] = True, True
    run.write("recipe.json", plan | {"name": "small"})
    for cell, took in found:
        run.save(cell, runs.rows(cell), took)
    return folder


def at_work(folder: Path, *tasks: Task, **more: Any) -> None:
    now = Activity(version="0.1.0", process=4711, began=1000.0, doing="attacking", workers=2, tasks=tasks)
    disk.write(folder / activity.FILE, now.model_copy(update=more).model_dump_json())


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
    with disk.alone(folder):
        yield


def seen(run: Progress, width: int = 100, height: int = 40, now: float = 1100.0) -> str:
    console = Console(file=io.StringIO(), record=True, width=width, height=height, force_terminal=True)
    console.print(dashboard.view(run, now, width, height))
    return console.export_text()


SOME = {"twin.slow.0": 10.0, "lox.slow.0": 20.0}


class TestState:
    def test_a_run_at_work_shows_what_each_process_is_at(self, tmp_path: Path) -> None:
        folder = saved(tmp_path / "run", cells(SOME))
        at_work(folder, Task(name="lox.quick.1", began=1058.0, looks=4, position=6.0), looks={"slow": 5, "quick": 9})
        with running(folder):
            run = Reader(folder).look()
        shown = seen(run)
        assert run.state == "running" and "running for 1 min 40 s" in shown and "2 of 27 cells" in shown
        assert "2 done, 1 running, 24 to go" in shown
        assert "lox under quick, seed 1" in shown and "look 4 of 9, at 6" in shown and "42 s" in shown
        assert "cost so far: 30 s of computing" in shown

    def test_a_cell_with_a_record_is_not_at_work_any_more(self, tmp_path: Path) -> None:
        """Unless the record is older than the work: a failed cell that is run again."""
        folder = saved(tmp_path / "run", cells(SOME))
        at_work(folder, Task(name="lox.slow.0", began=1058.0), Task(name="twin.slow.0", began=time.time() + 9))
        with running(folder):
            run = Reader(folder).look()
        assert "2 done, 1 running, 24 to go" in seen(run) and "1 at work" in dashboard.summary(run, 1100.0)
        assert "lox under slow" not in seen(run).partition("worst so far")[0]

    def test_killed_it_is_interrupted_whatever_it_left_behind(self, tmp_path: Path) -> None:
        folder = saved(tmp_path / "run", cells(SOME))
        at_work(folder, Task(name="lox.quick.1", began=1058.0))
        run = Reader(folder).look()
        assert run.state == "interrupted" and run.now is None and "lox under quick" not in seen(run)

    @pytest.mark.parametrize("content", ["", "{", "null", '{"process": "x"}', "[" * 100_000, "\ud800"])
    def test_a_damaged_note_of_what_is_at_work_is_said_and_no_more(self, tmp_path: Path, content: str) -> None:
        folder = saved(tmp_path / "run", cells(SOME))
        (folder / activity.FILE).write_text(content, errors="surrogatepass")
        with running(folder):
            run = Reader(folder).look()
        assert run.state == "running" and "does not say at what" in seen(run) and run.done == 2

    def test_all_cells_there_is_finished(self, tmp_path: Path) -> None:
        everything = {
            f"{s}.{a}.{n}": 1.0 for s in ("twin", "lox", "expo") for a in ("slow", "quick", "noise") for n in range(3)
        }
        assert Reader(saved(tmp_path / "run", cells(everything))).look().state == "finished"

    def test_a_record_that_cannot_be_read_is_damage_and_of_another_version_is_not(self, tmp_path: Path) -> None:
        for version, state in (("0.1.0", "damaged"), ("9.9", "interrupted")):
            folder = saved(tmp_path / version, cells(SOME), version=version)
            (folder / "cells/lox.slow.0.json").write_text('{"new": 1}')
            run = Reader(folder).look()
            assert run.state == state and run.done == 1 and "1 unreadable" in seen(run)
        assert "written by holdfast 9.9" in seen(run)

    def test_cells_that_go_and_come_again_are_followed(self, tmp_path: Path) -> None:
        folder = saved(tmp_path / "run", [(runs.cell("lox", "slow", 0, [], "failed", "boom"), 1.0)])
        reader = Reader(folder)
        assert [cell.reason for cell in reader.look().failed] == ["boom"]
        for path in (folder / "cells").iterdir():
            path.unlink()
        assert not reader.look().finished
        saved(folder, cells(SOME))
        assert reader.look().done == 2

    def test_hardenings_are_shown_with_what_they_say(self, tmp_path: Path) -> None:
        folder = saved(tmp_path / "run", [])
        at_work(folder, Task(name="lox", began=1070.0, says="lox: step 3  loss 1.5"), doing="hardening")
        with running(folder):
            run = Reader(folder).look()
        shown = seen(run)
        assert (
            "hardening the subjects" in shown and "lox: step 3 loss 1.5" in " ".join(shown.split()) and "30 s" in shown
        )
        assert dashboard.summary(run, 1100.0).startswith("hardening lox, 0 of 27 cells done")

    def test_a_search_without_a_recipe_is_a_run(self, tmp_path: Path) -> None:
        disk.write(tmp_path / "search/plan.json", "{}")
        for number in range(3):
            disk.write(tmp_path / f"search/{number:05d}.json", "{}")
        at_work(tmp_path, Task(name="00003", began=1090.0), doing="searching", says="43 % of the budget spent")
        with running(tmp_path):
            run = Reader(tmp_path).look()
        assert "3 trials done, 43 % of the budget spent" in seen(run) and "00003" in seen(run)

    def test_what_is_no_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(Problem, match=r"not a run.*give the folder"):
            Reader(tmp_path).look()


class TestTimeLeft:
    def look(self, folder: Path, *tasks: Task, **more: Any) -> Progress:
        at_work(folder, *tasks, **{"looks": {"slow": 5, "quick": 10, "noise": 1}} | more)
        with running(folder):
            return Reader(folder).look()

    def test_by_the_attacks_own_cells_else_by_looks(self, tmp_path: Path) -> None:
        folder = saved(tmp_path / "run", cells(SOME))
        run = self.look(folder, Task(name="lox.quick.0", began=1088.0))
        # slow: 15 s each by its own two; a look takes 30 s / 10 = 3 s, so quick 30 s and noise 3 s; one quick cell is 12 s old.
        left = run.left(1100.0)
        assert left and left.cells == 2
        assert left.seconds == pytest.approx((7 * 15 + 9 * 30 - 12 + 9 * 3) / 2)

    def test_no_cell_takes_less_than_itself(self, tmp_path: Path) -> None:
        names = [f"{s}.{a}.{n}" for s in ("twin", "lox", "expo") for a in ("slow", "quick", "noise") for n in range(3)]
        folder = saved(tmp_path / "run", cells(dict.fromkeys(names[:-1], 20.0)))
        assert self.look(folder).left(1100.0).seconds == 20
        late = self.look(folder, Task(name=names[-1], began=1000.0)).left(1100.0)
        assert late.seconds == pytest.approx(2)  # it should have been over long ago

    def test_nothing_is_foretold_without_a_finished_cell(self, tmp_path: Path) -> None:
        run = self.look(saved(tmp_path / "run", []), Task(name="lox.quick.0", began=1088.0))
        assert run.left(1100.0) is None and "known after the first cell" in seen(run)

    def test_on_a_cluster_by_how_many_were_at_work_so_far(self, tmp_path: Path) -> None:
        folder = saved(tmp_path / "run", cells({"twin.slow.0": 40.0, "lox.slow.0": 40.0}))
        now = time.time()
        run = self.look(folder, workers=None, began=now - 40)
        whole = 7 * 40 + 9 * 80 + 9 * 8
        assert run.left(now).seconds == pytest.approx(whole / 2, rel=0.2)  # 80 s of cells in 40 s


class TestWorst:
    def test_the_hardened_subject_and_attack_with_most_harm(self, tmp_path: Path) -> None:
        harms = {"twin": (0, 1, 1, 1), "expo": (0, 1, 1, 1), "lox": (0.1, 0.2, 0.3, 0.6)}
        found = cells({"twin.slow.0": 1, "lox.slow.0": 1, "expo.slow.0": 1}, lambda subject, _: harms[subject])
        found += cells(
            {"lox.quick.0": 1, "lox.noise.0": 1}, lambda _, attack: (0, 0.9) if attack == "noise" else (0, 0.4)
        )
        run = Reader(saved(tmp_path / "run", found)).look()
        worst = run.worst()
        assert (worst.subject, worst.attack, worst.most, worst.at) == ("lox", "slow", 0.6, 60)
        assert worst.broken == 1 and run.twin(worst).points == ((0, 0), (5, 1), (20, 1), (60, 1))
        assert "worst so far: broken, lox under slow, harm 0.60 at 60 steps, 1 seed so far" in seen(run)
        assert "twin (its twin)" in seen(run)

    def test_seeds_are_averaged_and_harm_of_a_useless_model_does_not_count(self, tmp_path: Path) -> None:
        looks = [runs.clock(0, 0.2, 0.9, utility=(1, 1, 0.1)), runs.clock(0, 0.4, 0.7, utility=(1, 1, 0.1))]
        found = [(runs.cell("lox", "slow", seed, one), 1.0) for seed, one in enumerate(looks)]
        worst = Reader(saved(tmp_path / "run", found)).look().worst()
        assert worst.most == pytest.approx(0.3) and worst.at == 5 and worst.seeds == 2
        assert worst.word == "not broken"
        assert worst.points[-1] == (20, pytest.approx(0.8))

    def test_seeds_break_one_by_one_as_a_verdict_counts_them(self, tmp_path: Path) -> None:
        """At 5 steps one seed is harmful and useless, the other useful and harmless: their mean would look like a break."""
        looks = [runs.clock(0, 0.9, utility=(1, 0.1)), runs.clock(0, 0.4)]
        found = [(runs.cell("lox", "quick", seed, one), 1.0) for seed, one in enumerate(looks)]
        looks = [runs.clock(0, 0.6), runs.clock(0, 0.1), runs.clock(0, 0.1)]
        found += [(runs.cell("lox", "slow", seed, one), 1.0) for seed, one in enumerate(looks)]
        run = Reader(saved(tmp_path / "run", found)).look()
        mixed, some = run.trace("lox", "quick"), run.trace("lox", "slow")
        assert mixed.word == "not broken" and mixed.most == pytest.approx(0.4)
        assert some.word == "broken in 1 of 3 seeds" and some.most == pytest.approx(0.8 / 3)
        assert run.worst() == some


class TestView:
    @pytest.mark.parametrize("width", [20, 40, 60, 100, 200])
    @pytest.mark.parametrize("height", [8, 16, 24, 50])
    def test_it_fits_the_terminal(self, tmp_path: Path, width: int, height: int) -> None:
        folder = saved(tmp_path / "run", cells(SOME))
        at_work(folder, *(Task(name=f"lox.quick.{n}", began=1000.0 + n, says="x" * 300 * (n == 1)) for n in range(12)))
        with running(folder):
            shown = seen(Reader(folder).look(), width, height)
        assert max(map(cell_len, shown.splitlines())) <= width
        assert len(shown.splitlines()) <= max(height, 8) and "small" in shown

    def test_nothing_of_others_reaches_the_terminal_raw(self, tmp_path: Path) -> None:
        folder = saved(tmp_path / "run", cells(SOME), version=ESCAPE)
        plan = json.loads((folder / "recipe.json").read_text())
        plan["name"], plan["attacks"][1]["name"] = f"evil{ESCAPE}", f"quick{ESCAPE}"
        disk.write(folder / "recipe.json", json.dumps(plan))
        at_work(folder, Task(name=f"lox.quick{ESCAPE}.0", began=1.0, says=f"said{ESCAPE}"), says=ESCAPE)
        with running(folder):
            run = Reader(folder).look()
        for shown in (seen(run), dashboard.summary(run, 1.0)):
            assert not {"\x1b", "\x07", "‮"} & set(shown)
        assert "evil" in seen(run) and "[red]" in seen(run)

    def test_a_curve_rises_from_its_lowest_dots_to_its_highest(self) -> None:
        line = sketch.Line([(0, 0.0), (60, 1.0)], "cyan")
        rows = [row.plain for row in sketch.drawn([line], 26, 4, 0.5, "steps", logarithmic=False)]
        assert rows[3][6] in "⡀⣀" and rows[0][25] in "⠈⠉"
        assert rows[0].startswith("   1 ┤") and rows[3].startswith("   0 ┤") and rows[-1].endswith("60 steps")
        dots = [
            sum(bin(ord(c) - 0x2800).count("1") for c in "".join(found) if 0x2800 < ord(c) < 0x2900)
            for found in (
                rows,
                [row.plain for row in sketch.drawn([line._replace(dotted=True)], 26, 4, 0.5, "steps", False)],
            )
        ]
        assert 0 < dots[1] < dots[0] / 2

    @pytest.mark.parametrize(
        ("seconds", "says"),
        [(0, "0 s"), (59.6, "1 min"), (192, "3 min 12 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h"), (-5, "0 s")],
    )
    def test_times(self, seconds: float, says: str) -> None:
        assert lasting(seconds) == says


class TestDisplay:
    @pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("NO_COLOR", "1"), ("TERM", "dumb"), ("", "")])
    def test_drawn_on_a_terminal_only(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
        if name:
            monkeypatch.setenv(name, value)
        assert display.drawable(Console(file=Terminal())) == (not name)
        monkeypatch.setenv("FORCE_COLOR", "1")
        assert not display.drawable(Console(file=io.StringIO()))  # a pipe

    def test_the_cursor_comes_back_after_ctrl_c(self, tmp_path: Path) -> None:
        file, folder = Terminal(), saved(tmp_path / "run", cells(SOME))
        with pytest.raises(KeyboardInterrupt), running(folder), display.shown(Console(file=file, width=80), folder, 1):
            raise KeyboardInterrupt
        said = file.getvalue()
        assert "2 of 27 cells" in said and said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")
        assert not (folder / activity.FILE).exists()

    def test_the_cursor_comes_back_after_sigterm(self, tmp_path: Path) -> None:
        """And whoever heard of the signal before hears of it, as without a view."""
        heard: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
        folder, place = saved(tmp_path / "run", cells(SOME)), tmp_path / "terminal"
        try:
            with place.open("w") as file, display.Screen(Console(file=file, force_terminal=True, width=80), folder):
                signal.raise_signal(signal.SIGTERM)
                said = place.read_text()
        finally:
            signal.signal(signal.SIGTERM, before)
        assert heard == [signal.SIGTERM] and said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")

    def test_failed_cells_stay_on_the_screen_when_the_view_goes(self, tmp_path: Path) -> None:
        file, folder = Terminal(), saved(tmp_path / "run", cells(SOME))
        with display.Screen(Console(file=file, width=80), folder) as screen:
            saved(folder, [(runs.cell("lox", "quick", 0, [], "failed", "boom"), 1.0)])
            screen.look()
            saved(folder, cells({"lox.quick.1": 1.0}))
        assert "lox under quick, seed 0: FAILED, boom" in file.getvalue()
        assert "lox under quick, seed 1" not in file.getvalue()

    def test_elsewhere_a_line_for_each_cell(self, tmp_path: Path) -> None:
        console, folder = Console(record=True, width=200, file=io.StringIO()), saved(tmp_path / "run", cells(SOME))
        with display.shown(console, folder, 1):
            saved(folder, cells({"lox.quick.0": 7.0}))
        assert console.export_text().splitlines() == [
            "lox under quick, seed 0: harm 0.60, utility 1.00 at 60 (7 s; 3 of 27 cells done)"
        ]

    def test_a_narrower_window_is_drawn_anew(self, tmp_path: Path) -> None:
        file, folder = Terminal(), saved(tmp_path / "run", cells(SOME))
        console = Console(file=file, width=90, height=30)
        with display.Screen(console, folder) as screen:
            console.size = (50, 30)
            screen.look()
        assert "\x1b[2J" in file.getvalue()


class TestBoard:
    def test_what_is_heard_is_written_and_gone_at_the_end(self, tmp_path: Path) -> None:
        said: list[str] = []
        with Board(tmp_path, 2, said.append, said.append) as board:
            board.doing("attacking", looks={"a": 3})
            board.hear(Word("s.a.0"))
            board.hear(Word("s.a.0", 0.0))
            board.hear(Word("s.a.0", 5.0))
            board.hear(Word("h", line="loss 1"))
            board.end("h")
            while not (now := activity.read(tmp_path)) or not now.tasks:
                threading.Event().wait(0.05)
        (task,) = now.tasks
        assert (task.name, task.looks, task.position) == ("s.a.0", 2, 5.0) and now.looks == {"a": 3}
        assert said == ["loss 1"] and not list(tmp_path.iterdir())

    def test_a_folder_that_cannot_be_written_stops_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with Board(tmp_path / "file", 2, print, print) as board:
            board.hear(Word("s.a.0"))


class TestAudit:
    @pytest.fixture(scope="class")
    def done(self, tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], tiny.Made]) -> dict[str, Any]:
        """An audit whose attack waits until its own second look is told in the run's folder, and keeps what is told."""
        folder = tmp_path_factory.mktemp("live")
        own = audits.attack(
            folder,
            "own",
            "at(Cost(steps=1))",
            "until, file = time.monotonic() + 30, Path(self.word) / 'run/.activity.json'",
            "while '\"looks\":2' not in (told := file.read_text()) and time.monotonic() < until: time.sleep(0.05)",
            "(Path(self.word) / 'told.json').write_text(told)",
            "weight *= 0.9",
            "at(Cost(steps=2))",
        )
        attacks = [{"name": "own", "method": own, "word": str(folder)}]
        path = audits.write(folder, checkpoint("llama"), attacks)
        console = Console(record=True, width=200, file=io.StringIO())
        run = audits.run_all(path, folder / "run", console)
        return {
            "run": run,
            "told": Activity.model_validate_json((folder / "told.json").read_text()),
            "said": console.export_text(),
        }

    def test_it_tells_how_far_its_cells_are(self, done: dict[str, Any]) -> None:
        (task,) = done["told"].tasks
        assert (done["told"].doing, task.name, task.looks, task.position) == ("attacking", "twin.own.0", 2, 1.0)

    def test_afterwards_nothing_of_it_is_left_and_the_record_has_its_whole_time(self, done: dict[str, Any]) -> None:
        run = done["run"]
        assert not (run.folder / activity.FILE).exists() and Reader(run.folder).look().state == "finished"
        took = run.read("cells/twin.own.0.timing.json")
        assert took["whole"] >= took["seconds"][-1]
        assert "1 of 1 cells done" in done["said"]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    monkeypatch.setattr(speech.console, "_width", 140)

    def command(*words: object) -> tuple[int, str]:
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out + err

    return command


class TestWatch:
    def test_it_follows_a_run_to_its_end_and_touches_nothing(
        self, tmp_path: Path, tell: Callable[..., tuple[int, str]]
    ) -> None:
        folder = saved(tmp_path / "run", cells(SOME))
        begun, over = threading.Event(), threading.Event()

        def work() -> None:
            with running(folder):
                begun.set()
                over.wait(30)

        worker = threading.Thread(target=work)
        worker.start()
        begun.wait(30)
        before = stamps(folder)
        threading.Timer(
            0.3, lambda: (saved(folder, cells({"lox.quick.0": 7.0})), before.update(stamps(folder)), over.set())
        ).start()
        code, out = tell("watch", folder)
        worker.join()
        assert code == 0 and "lox under quick, seed 0: harm 0.60" in out and "interrupted" in out
        assert stamps(folder) == before

    def test_of_one_that_is_over_it_shows_the_end_and_leaves(
        self, tmp_path: Path, tell: Callable[..., tuple[int, str]]
    ) -> None:
        code, out = tell("watch", saved(tmp_path / "run", cells(SOME)))
        assert code == 0 and "interrupted" in out and "goes on from here" in out

    def test_ctrl_c_leaves_and_the_run_goes_on(
        self, tmp_path: Path, tell: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = saved(tmp_path / "run", cells(SOME))

        def interrupted(self: object, seconds: float | None = None) -> bool:
            if threading.current_thread() is threading.main_thread() and seconds == display.EVERY:
                raise KeyboardInterrupt
            return waited(self, seconds)

        waited = threading.Event.wait
        monkeypatch.setattr(threading.Event, "wait", interrupted)
        with running(folder):
            code, out = tell("watch", folder)
            assert disk.held(folder)
        assert code == 0 and "left; the run goes on" in out

    def test_what_is_not_there(self, tmp_path: Path, tell: Callable[..., tuple[int, str]]) -> None:
        assert tell("watch", tmp_path / "none") == (
            2,
            f"holdfast: {tmp_path}/none: no such folder; holdfast runs lists the runs there are\n",
        )

    def test_whoever_looks_keeps_nobody_from_work(self, tmp_path: Path) -> None:
        with running(tmp_path):
            assert disk.held(tmp_path)
        assert not disk.held(tmp_path)
        with open(tmp_path / disk.LOCK, "rb") as looker:
            fcntl.flock(looker, fcntl.LOCK_SH)
            threading.Timer(0.03, lambda: fcntl.flock(looker, fcntl.LOCK_UN)).start()
            with running(tmp_path):
                pass


class TestRuns:
    def test_each_run_in_a_line(self, tmp_path: Path, tell: Callable[..., tuple[int, str]]) -> None:
        everything = {
            f"{s}.{a}.{n}": 1.0 for s in ("twin", "lox", "expo") for a in ("slow", "quick", "noise") for n in range(3)
        }
        verdict.write(runs.Run(saved(tmp_path / "whole", cells(everything))))
        saved(tmp_path / "half", cells(SOME))
        saved(tmp_path / "busy", [])
        saved(tmp_path / "other", cells(SOME), version="9.9")
        (saved(tmp_path / "torn", cells(SOME)) / "recipe.json").write_text("{")
        (tmp_path / "nothing").mkdir()
        with running(tmp_path / "busy"):
            code, out = tell("runs", tmp_path)
        lines = {line.split()[0]: line for line in out.splitlines()}
        assert code == 0 and [*lines] == ["run", "busy", "half", "other", "torn", "whole"]
        assert "running" in lines["busy"] and "0/27" in lines["busy"] and "nothing measured so far" in lines["busy"]
        assert "interrupted" in lines["half"] and "2/27" in lines["half"] and "2026-01-31" in lines["half"]
        assert "broken: harm 0.60, lox under slow" in lines["half"]
        assert "by holdfast 9.9" in lines["other"]
        assert "damaged" in lines["torn"] and "recipe.json" in lines["torn"]
        assert "finished" in lines["whole"] and "27/27" in lines["whole"] and "(lox)" in lines["whole"]

    def test_an_empty_folder_and_one_that_is_not_there(
        self, tmp_path: Path, tell: Callable[..., tuple[int, str]]
    ) -> None:
        assert tell("runs", tmp_path)[0] == 0
        code, out = tell("runs", tmp_path / "none")
        assert code == 2 and "no such folder" in out

    def test_a_run_that_only_its_owner_may_read(
        self, tmp_path: Path, tell: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        theirs, ours = saved(tmp_path / "theirs", []), saved(tmp_path / "ours", cells(SOME))

        def opened(path: Path, *how: Any, **more: Any) -> Any:
            if theirs in Path(str(path)).parents:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *how, **more)

        original = open
        monkeypatch.setattr("builtins.open", opened)
        code, out = tell("runs", tmp_path)
        assert code == 0 and f"{theirs}: may not be read" in out and ours.name in out


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}
