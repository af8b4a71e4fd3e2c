//! The counts of the demo, refreshed in place on a terminal and a line at a time elsewhere.

use std::fmt::{self, Display, Write as _};
use std::io::{self, Write};
use std::net::SocketAddr;

use crate::config::Address;
use crate::supervisor::Handle;

/// Cells of the longest bar: with the columns before it, a line fits into 80.
const BAR_CELLS: u64 = 16;

/// How often each backend was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    upstreams: Vec<UpstreamCounts>,
    generation: u64,
    /// The first line of what is wrong with the file.
    problem: Option<String>,
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
}

impl Counts {
    /// Those of the moment; `names` are the demo's for addresses.
    pub(super) fn of(handle: &Handle, names: &[(&str, SocketAddr)]) -> Self {
        let snapshot = handle.snapshot();
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
                })
                .collect(),
        });
        let status = handle.status();
        let problem = status.last_error.as_ref().and_then(|error| error.text.lines().next().map(str::to_owned));
        Self { upstreams: upstreams.collect(), generation: snapshot.generation, problem }
    }

    /// All on one line: `users one=3 two=3 three=2; weighted …`.
    fn line(&self) -> String {
        let upstream = |upstream: &UpstreamCounts| {
            let backends: Vec<_> = upstream.backends.iter().map(|it| format!("{}={}", it.name, it.picks)).collect();
            format!("{} {}", upstream.name, backends.join(" "))
        };
        let mut line = self.upstreams.iter().map(upstream).collect::<Vec<_>>().join("; ");
        if let Some(problem) = &self.problem {
            // Cannot fail on a `String`.
            let _ = write!(line, "; {problem}");
        }
        line
    }
}

/// As a table.
impl Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  {:<30} {:>6} {:>9} {:>6} {:>4}",
            "generation ".to_owned() + &self.generation.to_string(),
            "weight",
            "requests",
            "share",
            "now"
        )?;
        for upstream in &self.upstreams {
            writeln!(f, "  {}, {}", upstream.name, upstream.strategy)?;
            let total: u64 = upstream.backends.iter().map(|it| it.picks).sum();
            let most = upstream.backends.iter().map(|it| it.picks).max().unwrap_or(0).max(1);
            for BackendCounts { name, weight, picks, in_flight } in &upstream.backends {
                let share = *picks as f64 * 100.0 / total.max(1) as f64;
                let bar = "#".repeat((picks * BAR_CELLS / most) as usize);
                let line = format!("    {name:<28} {weight:>6} {picks:>9} {share:>5.1}% {in_flight:>4} {bar}");
                writeln!(f, "{}", line.trim_end())?;
            }
        }
        match &self.problem {
            // Longer lines would wrap, and the next refresh would begin in the wrong place.
            Some(problem) => writeln!(f, "  not applied: {}", problem.chars().take(64).collect::<String>()),
            None => Ok(()),
        }
    }
}

/// Where the counts are shown. The cursor comes back when this is dropped.
#[derive(Debug)]
pub(super) struct Screen<W: Write> {
    out: W,
    terminal: bool,
    /// Lines of the table that stands on the screen.
    standing: usize,
    shown: Option<Counts>,
}

impl<W: Write> Screen<W> {
    pub(super) fn new(out: W, terminal: bool) -> Self {
        Self { out, terminal, standing: 0, shown: None }
    }

    /// Writes a text above the counts.
    pub(super) fn print(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Shows the counts if they are others than before.
    pub(super) fn show(&mut self, counts: &Counts) -> io::Result<()> {
        if self.shown.as_ref() == Some(counts) {
            return Ok(());
        }
        if self.terminal {
            self.replace(counts)?;
        } else if self.shown.is_some() {
            // The first are all zero, and no news.
            writeln!(self.out, "{}", counts.line())?;
        }
        self.shown = Some(counts.clone());
        self.out.flush()
    }

    /// Ends with a table that stays.
    pub(super) fn close(&mut self, counts: &Counts) -> io::Result<()> {
        if self.terminal {
            return self.replace(counts);
        }
        write!(self.out, "\n{counts}")?;
        self.out.flush()
    }

    fn replace(&mut self, counts: &Counts) -> io::Result<()> {
        let table = counts.to_string();
        // The cursor is hidden, goes up to where the table begins, and what is below is cleared.
        self.out.write_all(b"\x1b[?25l")?;
        if self.standing > 0 {
            write!(self.out, "\x1b[{}A", self.standing)?;
        }
        write!(self.out, "\r\x1b[J{table}")?;
        self.standing = table.lines().count();
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

    fn counts(picks: [u64; 3]) -> Counts {
        let backend = |(name, picks): (&str, u64)| BackendCounts { name: name.into(), weight: 1, picks, in_flight: 0 };
        let backends = ["one", "two", "three"].into_iter().zip(picks).map(backend).collect();
        let users = UpstreamCounts { name: "users".into(), strategy: "round_robin".into(), backends };
        Counts { upstreams: vec![users], generation: 1, problem: None }
    }

    fn shown(terminal: bool, shows: &[[u64; 3]]) -> String {
        let mut out = Vec::new();
        let mut screen = Screen::new(&mut out, terminal);
        for &picks in shows {
            screen.show(&counts(picks)).unwrap();
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
        counts.problem = Some("x".repeat(200));
        let table = counts.to_string();
        assert!(table.contains(" 75.0% ") && table.contains(" 25.0% ") && table.contains("  0.0% "), "{table}");
        assert!(table.contains(&format!(" {}\n", "#".repeat(16))), "{table}");
        for line in table.lines() {
            assert!(line.chars().count() < 80, "{line}");
        }
    }
}
