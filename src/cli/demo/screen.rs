//! The counts of the demo, refreshed in place on a terminal and a line at a time elsewhere.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Instant;

use crate::config::Address;
use crate::supervisor::Handle;

/// Cells of the longest bar: with the columns before it, a line fits into 80.
const BAR_CELLS: u64 = 9;

/// How many columns and lines there are to write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ScreenSize {
    columns: usize,
    lines: usize,
}

impl ScreenSize {
    /// Where nothing says.
    const USUAL: Self = Self { columns: 80, lines: 24 };
    /// Narrower or lower than this, a terminal shows nothing that could be read.
    const LEAST: Self = Self { columns: 20, lines: 4 };

    /// That of the terminal at standard output.
    pub(super) fn of_terminal() -> Self {
        #[cfg(target_os = "linux")]
        let told = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| (size.ws_col, size.ws_row));
        #[cfg(not(target_os = "linux"))]
        let told: Option<(u16, u16)> = None;
        match told {
            // Some terminals do not know.
            Some((columns, lines)) if columns > 0 && lines > 0 => Self {
                columns: usize::from(columns).max(Self::LEAST.columns),
                lines: usize::from(lines).max(Self::LEAST.lines),
            },
            _ => Self::USUAL,
        }
    }
}

/// How often each backend was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequestCounts {
    upstreams: Vec<UpstreamCounts>,
    generation: u64,
    /// What is wrong with the file, a line each.
    problems: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct UpstreamCounts {
    name: String,
    strategy: String,
    backends: Vec<BackendCounts>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct BackendCounts {
    name: String,
    weight: u16,
    picks: u64,
    in_flight: u32,
    /// Whether it may be picked, in a word.
    state: &'static str,
}

impl RequestCounts {
    /// Those of the moment; `names` are the demo's for addresses.
    pub(super) fn of(handle: &Handle, names: &[(&str, SocketAddr)]) -> Self {
        let (snapshot, now) = (handle.snapshot(), Instant::now());
        let name_of = |address: &Address| {
            let known = names.iter().find(|(_, known)| *address == Address::Ip(*known));
            known.map_or_else(|| address.to_string(), |(name, _)| (*name).to_owned())
        };
        let upstreams = snapshot.upstreams.iter().map(|upstream| UpstreamCounts {
            name: upstream.name().to_string(),
            strategy: upstream.config.strategy.as_str().to_owned(),
            backends: upstream
                .roster()
                .backends()
                .iter()
                .map(|backend| BackendCounts {
                    name: name_of(&backend.state.address),
                    weight: backend.weight,
                    picks: backend.state.metrics.sum(|metrics| &metrics.picks),
                    in_flight: backend.state.in_flight(),
                    state: upstream.readiness(backend, now).as_str(),
                })
                .collect(),
        });
        let status = handle.status();
        let text = status.last_error.as_ref().map_or("", |error| error.text.as_str());
        let problems = text.lines().map(str::to_owned).collect();
        Self { upstreams: upstreams.collect(), generation: snapshot.generation, problems }
    }

    /// All on one line: `users one=3 two=3 three=2 (ejected); weighted …`.
    fn line(&self) -> String {
        let backend = |it: &BackendCounts| match it.state {
            READY => format!("{}={}", it.name, it.picks),
            state => format!("{}={} ({state})", it.name, it.picks),
        };
        let upstream = |upstream: &UpstreamCounts| {
            let backends: Vec<_> = upstream.backends.iter().map(backend).collect();
            format!("{} {}", upstream.name, backends.join(" "))
        };
        self.upstreams.iter().map(upstream).collect::<Vec<_>>().join("; ")
    }

    /// As a table, whose lines may be so long. What is wrong with the file is told whole.
    fn table(&self, columns: usize) -> Vec<String> {
        let generation = format!("generation {}", self.generation);
        let mut lines = vec![format!(
            "  {generation:<20} {:<16} {:>6} {:>9} {:>6} {:>4}",
            "state", "weight", "requests", "share", "now"
        )];
        for upstream in &self.upstreams {
            lines.push(format!("  {}, {}", upstream.name, upstream.strategy));
            let total: u64 = upstream.backends.iter().map(|it| it.picks).sum();
            let most = upstream.backends.iter().map(|it| it.picks).max().unwrap_or(0).max(1);
            for BackendCounts { name, weight, picks, in_flight, state } in &upstream.backends {
                let share = *picks as f64 * 100.0 / total.max(1) as f64;
                let bar = "#".repeat((picks * BAR_CELLS / most) as usize);
                lines.push(format!(
                    "    {name:<18} {state:<16} {weight:>6} {picks:>9} {share:>5.1}% {in_flight:>4} {bar}"
                ));
            }
        }
        if !self.problems.is_empty() {
            lines.push("  not applied:".into());
            lines.extend(
                self.problems
                    .iter()
                    .flat_map(|problem| wrapped(problem, columns.saturating_sub(4)))
                    .map(|line| format!("    {line}")),
            );
        }
        let cut = |line: String| line.chars().take(columns).collect::<String>().trim_end().to_owned();
        lines.into_iter().map(cut).collect()
    }

    /// The same where there are so many lines for it.
    fn fitted(&self, size: ScreenSize) -> Vec<String> {
        // A line that is full would put the cursor on another one in some terminals; and it stands below the table.
        let mut lines = self.table(size.columns - 1);
        if lines.len() >= size.lines {
            lines.truncate(size.lines - 2);
            lines.push("  …".into());
        }
        lines
    }
}

/// The state that goes without saying.
const READY: &str = "ready";

/// A text in lines of so many characters, broken between words where there are some.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let (mut lines, mut line, mut length) = (Vec::new(), String::new(), 0);
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        if length > 0 && length + 1 + word.len() > columns {
            lines.push(std::mem::take(&mut line));
            length = 0;
        }
        while word.len() > columns.max(1) {
            lines.push(word.drain(..columns.max(1)).collect());
        }
        if length > 0 {
            line.push(' ');
            length += 1;
        }
        length += word.len();
        line.extend(word);
    }
    lines.push(line);
    lines
}

/// Where the counts are shown. The cursor comes back when this is dropped.
#[derive(Debug)]
pub(super) struct Screen<W: Write> {
    out: W,
    terminal: bool,
    /// What stands above the table.
    above: String,
    /// Lines of the table that stands on the screen.
    standing: usize,
    /// The size of the terminal when it was drawn.
    drawn_for: Option<ScreenSize>,
    shown: Option<(RequestCounts, ScreenSize)>,
}

impl<W: Write> Screen<W> {
    pub(super) fn new(out: W, terminal: bool) -> Self {
        Self { out, terminal, above: String::new(), standing: 0, drawn_for: None, shown: None }
    }

    /// Writes a text above the counts.
    pub(super) fn print(&mut self, text: &str) -> io::Result<()> {
        self.above.push_str(text);
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Shows the counts if they, or the terminal's `size`, are others than before.
    pub(super) fn show(&mut self, counts: &RequestCounts, size: ScreenSize) -> io::Result<()> {
        let before = self.shown.replace((counts.clone(), size));
        if before.as_ref().is_some_and(|(shown, at)| (shown, *at) == (counts, size)) {
            return Ok(());
        }
        if self.terminal {
            self.replace(counts, size)?;
        } else if let Some((before, _)) = before {
            // The first are all zero, and no news.
            self.tell(&before, counts)?;
        }
        self.out.flush()
    }

    /// Says what is new, a line each.
    fn tell(&mut self, before: &RequestCounts, counts: &RequestCounts) -> io::Result<()> {
        let line = counts.line();
        if line != before.line() {
            writeln!(self.out, "{line}")?;
        }
        if counts.problems != before.problems && !counts.problems.is_empty() {
            writeln!(self.out, "not applied:\n  {}", counts.problems.join("\n  "))?;
        }
        if counts.generation != before.generation {
            writeln!(self.out, "applied: generation {}", counts.generation)?;
        }
        Ok(())
    }

    /// Ends with a table that stays.
    pub(super) fn close(&mut self, counts: &RequestCounts, size: ScreenSize) -> io::Result<()> {
        if self.terminal {
            self.show(counts, size)?;
            return self.out.flush();
        }
        write!(self.out, "\n{}\n", counts.table(usize::MAX).join("\n"))?;
        self.out.flush()
    }

    fn replace(&mut self, counts: &RequestCounts, size: ScreenSize) -> io::Result<()> {
        let table = counts.fitted(size);
        // The cursor is hidden.
        self.out.write_all(b"\x1b[?25l")?;
        if self.drawn_for.replace(size).is_some_and(|before| before != size) {
            // Some terminals have broken the lines anew, others have not: where the table begins is not known.
            write!(self.out, "\x1b[H\x1b[2J{}", self.above)?;
        } else if self.standing > 0 {
            // Up to where it begins.
            write!(self.out, "\x1b[{}A", self.standing)?;
        }
        // What is below is cleared.
        write!(self.out, "\r\x1b[J{}\n", table.join("\n"))?;
        self.standing = table.len();
        self.out.flush()
    }
}

impl<W: Write> Drop for Screen<W> {
    fn drop(&mut self) {
        if self.terminal {
            // A terminal that is gone needs no cursor.
            let _ = self.out.write_all(b"\x1b[?25h");
            let _ = self.out.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(picks: [u64; 3]) -> RequestCounts {
        let backend = |(name, picks): (&str, u64)| BackendCounts {
            name: name.into(),
            weight: 1,
            picks,
            in_flight: 0,
            state: if picks == 7 { "ejected" } else { READY },
        };
        let backends = ["one", "two", "three"].into_iter().zip(picks).map(backend).collect();
        let users = UpstreamCounts { name: "users".into(), strategy: "round_robin".into(), backends };
        RequestCounts { upstreams: vec![users], generation: 1, problems: Vec::new() }
    }

    fn shown(terminal: bool, shows: &[[u64; 3]]) -> String {
        let mut out = Vec::new();
        let mut screen = Screen::new(&mut out, terminal);
        for &picks in shows {
            screen.show(&counts(picks), ScreenSize::USUAL).unwrap();
        }
        drop(screen);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn elsewhere_than_on_a_terminal_a_line_tells_of_a_change() {
        let text = shown(false, &[[0, 0, 0], [0, 0, 0], [1, 1, 0], [1, 1, 0], [2, 1, 1]]);
        assert_eq!(text, "users one=1 two=1 three=0\nusers one=2 two=1 three=1\n");
    }

    #[test]
    fn on_a_terminal_the_table_is_replaced_and_the_cursor_comes_back() {
        let text = shown(true, &[[0, 0, 0], [1, 1, 0]]);
        assert_eq!(text.matches("\x1b[5A\r\x1b[J").count(), 1, "five lines up, once: {text:?}");
        assert!(text.ends_with("\x1b[?25h"));
    }

    #[test]
    fn the_table_shows_shares_and_fits() {
        let mut counts = counts([300, 100, 0]);
        counts.problems = vec!["x".repeat(200)];
        let table = counts.table(79).join("\n") + "\n";
        assert!(table.contains(" 75.0% ") && table.contains(" 25.0% ") && table.contains("  0.0% "), "{table}");
        assert!(table.contains(&format!(" {}\n", "#".repeat(9))), "{table}");
        for line in table.lines() {
            assert!(line.chars().count() < 80, "{line}");
        }
    }

    #[test]
    fn a_backend_that_is_not_picked_is_seen() {
        let table = counts([8, 9, 7]).table(79);
        let states: Vec<_> = table.iter().map(|line| line.split_whitespace().nth(1).unwrap_or("-")).collect();
        assert_eq!(states, ["1", "round_robin", "ready", "ready", "ejected"], "{table:?}");
        assert_eq!(shown(false, &[[8, 9, 6], [8, 9, 7]]), "users one=8 two=9 three=7 (ejected)\n");
    }

    #[test]
    fn the_reason_of_a_refused_file_is_told_whole() {
        let problems = [
            "lb.toml:3:1: first, and a sentence about it that is too long for one line of a terminal; did you mean \"it\"?",
            "lb.toml:9:9: second",
        ];
        let mut counts = counts([1, 1, 1]);
        counts.problems = problems.map(str::to_owned).to_vec();
        let table = counts.fitted(ScreenSize::USUAL);
        assert!(table.iter().all(|line| line.chars().count() < 80), "{table:?}");
        let told: Vec<_> =
            table.iter().skip_while(|line| *line != "  not applied:").skip(1).map(|line| line.trim()).collect();
        assert_eq!(told.join(" "), problems.join(" "));
        let mut out = Vec::new();
        let mut screen = Screen::new(&mut out, false);
        screen.show(&RequestCounts { problems: Vec::new(), ..counts.clone() }, ScreenSize::USUAL).unwrap();
        screen.show(&counts, ScreenSize::USUAL).unwrap();
        screen
            .show(&RequestCounts { problems: Vec::new(), generation: 2, ..counts.clone() }, ScreenSize::USUAL)
            .unwrap();
        drop(screen);
        let said = String::from_utf8(out).unwrap();
        assert_eq!(said, format!("not applied:\n  {}\n  {}\napplied: generation 2\n", problems[0], problems[1]));
    }

    #[test]
    fn a_narrow_or_low_terminal_gets_what_fits() {
        let mut counts = counts([300, 100, 0]);
        counts.problems = vec!["word ".repeat(100), "x".repeat(300)];
        for columns in 20..90 {
            for lines in 4..30 {
                let table = counts.fitted(ScreenSize { columns, lines });
                assert!(table.len() < lines, "{columns} {lines}: {table:?}");
                assert!(table.iter().all(|line| line.chars().count() < columns), "{columns} {lines}: {table:?}");
            }
        }
    }

    #[test]
    fn a_resized_terminal_is_drawn_anew() {
        let mut out = Vec::new();
        let mut screen = Screen::new(&mut out, true);
        screen.print("above\n").unwrap();
        let counts = counts([1, 1, 1]);
        screen.show(&counts, ScreenSize::USUAL).unwrap();
        screen.show(&counts, ScreenSize { columns: 40, ..ScreenSize::USUAL }).unwrap();
        screen.show(&counts, ScreenSize { columns: 40, ..ScreenSize::USUAL }).unwrap();
        drop(screen);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("\x1b[H\x1b[2Jabove\n\r\x1b[J").count(), 1, "{text:?}");
        assert!(!text.contains("A\r"), "nothing goes up by lines that may be others now: {text:?}");
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrapped("ab cd ef", 5), ["ab cd", "ef"]);
        assert_eq!(wrapped("abcdefg h", 3), ["abc", "def", "g h"]);
        assert_eq!(wrapped("", 3), [""]);
    }
}
