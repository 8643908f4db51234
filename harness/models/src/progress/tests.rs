use super::screen::{Screen, WriteLine};
use super::work::{Amount, Work, plain};
use super::*;
use indicatif::{InMemoryTerm, TermLike};
use std::time::Duration;

fn at(start: Instant, seconds: f64) -> Instant {
    start + Duration::from_secs_f64(seconds)
}

#[test]
fn steps_tell_which_for_how_long_and_how_much_is_left() {
    let start = Instant::now();
    let mut work = Work::new("hf", Amount::Steps { kind: "case", total: 7 }, start);
    work.doing = "loading the model".into();
    assert_eq!(work.told(at(start, 4.0)), "hf: loading the model, 4 s");
    // Loading is not counted into how long a case takes.
    work.set(0, at(start, 6.0));
    assert_eq!(work.told(at(start, 6.0)), "hf: case 1 of 7, 6 s");
    work.set(2, at(start, 12.0));
    assert_eq!(work.told(at(start, 12.0)), "hf: case 3 of 7, 12 s, about 15 s left");
    // It counts down while nothing is heard, and is not told where it turned out wrong.
    assert_eq!(work.told(at(start, 20.0)), "hf: case 3 of 7, 20 s, about 7 s left");
    assert_eq!(work.told(at(start, 40.0)), "hf: case 3 of 7, 40 s");
    work.set_part(0.5, at(start, 13.5));
    assert_eq!(work.told(at(start, 13.5)), "hf: case 3 of 7, 14 s, about 14 s left");
    work.set(7, at(start, 200.0));
    assert_eq!(work.told(at(start, 200.0)), "hf: case 7 of 7, 3 min 20 s");
}

#[test]
fn bytes_that_were_there_before_do_not_make_it_faster() {
    let start = Instant::now();
    let mut work = Work::new("weights", Amount::Bytes { total: 100_000_000 }, start);
    work.set(50_000_000, start);
    work.set(60_000_000, at(start, 5.0));
    let told = work.told(at(start, 5.0));
    assert_eq!(told, "weights: 60.00 MB of 100.00 MB, 5 s, about 20 s left");
    // Starting over: the estimate starts over too.
    work.set(0, at(start, 6.0));
    assert_eq!(work.told(at(start, 6.0)), "weights: 0 B of 100.00 MB, 6 s");
}

#[test]
fn nobody_knows_how_much_is_left_of_what_has_no_length() {
    let start = Instant::now();
    let mut work = Work::new("hf", Amount::Unknown, start);
    work.doing = "downloading and installing".into();
    let told = work.told(at(start, 8000.0));
    assert_eq!(told, "hf: downloading and installing, 2 h 13 min");
}

#[test]
fn what_a_tool_prints_moves_no_cursor() {
    assert_eq!(plain("\x1b[1m\x1b[92m   Compiling\x1b[0m serde\r\n"), "Compiling serde");
}

/// A screen in memory, and what stays on it.
fn terminal(columns: u16) -> (Arc<Screen>, InMemoryTerm) {
    let term = InMemoryTerm::new(12, columns);
    let below = term.clone();
    let write: WriteLine = Box::new(move |text| below.write_line(text).unwrap());
    (Arc::new(Screen::terminal(Arc::new(term.clone()), write)), term)
}

fn shown_at(columns: u16) -> String {
    let (screen, term) = terminal(columns);
    let progress = Progress { screen: Some(Arc::clone(&screen)) };
    let bar = progress.steps("hf", "case", 7);
    bar.detail(
        "unicode: 120 of 480 tensors and much more that no terminal has room for, however wide",
    );
    bar.set(0);
    screen.tick(Instant::now());
    term.contents()
}

#[test]
fn a_bar_is_one_line_whatever_the_width() {
    let wide = shown_at(100);
    assert!(
        wide.starts_with("hf: case 1 of 7, 0 s [") && wide.contains("] · unicode: 120 of"),
        "{wide}"
    );
    let narrow = shown_at(40);
    assert!(narrow.starts_with("hf: case 1 of 7, 0 s · unicode"), "{narrow}");
    let tiny = shown_at(19);
    assert!(tiny.starts_with("hf: case 1 of"), "{tiny}");
    for shown in [wide, narrow, tiny] {
        assert_eq!(shown.lines().count(), 1, "{shown:?}");
    }
}

#[test]
fn lines_stay_whole_and_bars_go() {
    let (screen, term) = terminal(60);
    let progress = Progress { screen: Some(Arc::clone(&screen)) };
    let hf = progress.steps("hf", "case", 2);
    let candle = progress.open("candle", "building");
    for step in 0..2 {
        hf.set(step);
        screen.tick(Instant::now());
        hf.say(&format!("hf: case {step} is done"));
    }
    let both = term.contents();
    let lines: Vec<&str> = both.lines().collect();
    assert_eq!(lines[..2], ["hf: case 0 is done", "hf: case 1 is done"], "{both}");
    assert!(
        lines[2].starts_with("hf: case 2 of 2") && lines[3].starts_with("candle: building"),
        "{both}"
    );
    drop(hf);
    drop(candle);
    progress.say("the end");
    let left: Vec<String> = term.contents().lines().map(str::to_owned).collect();
    assert_eq!(left, ["hf: case 0 is done", "hf: case 1 is done", "the end"]);
    assert!(!screen.tick(Instant::now()), "somebody still looks at nothing");
}

#[test]
fn without_a_terminal_there_is_a_line_now_and_then() {
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&lines);
    let screen =
        Arc::new(Screen::lines(Box::new(move |text| kept.lock().unwrap().push(text.into()))));
    let progress = Progress { screen: Some(Arc::clone(&screen)) };
    let bar = progress.steps("hf", "case", 3);
    bar.set(1);
    bar.detail("long");
    let start = Instant::now();
    for second in 0..22 {
        screen.tick(at(start, f64::from(second)));
    }
    drop(bar);
    screen.tick(at(start, 60.0));
    let lines = lines.lock().unwrap();
    let told: Vec<&str> = lines.iter().map(String::as_str).collect();
    assert_eq!(
        told,
        [
            "hf: case 2 of 3, 1 s (long)",
            "hf: case 2 of 3, 11 s (long)",
            "hf: case 2 of 3, 21 s (long)"
        ]
    );
}

#[test]
fn silence_is_silence() {
    let progress = Progress::silent();
    progress.say("never");
    let bar = progress.bytes("never", 10);
    bar.set(3);
    bar.add(3);
    assert!(bar.shown.is_none());
}
