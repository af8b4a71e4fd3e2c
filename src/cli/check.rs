//! `isobar check`: says whether a configuration could be used, without using it. The files that it names are read too.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use crate::config::{self, Config, Loaded, Problems, RefusedConfig, Secured, Vocabulary};
use crate::supervisor;

/// Checks a file. What is wrong or odd goes to standard error, the good news to standard output.
///
/// Exit code 0 for a configuration that can be used, with or without warnings, 1 for one that cannot.
pub fn run(path: &Path, vocabulary: &Vocabulary) -> ExitCode {
    let (problems, secured, config) = match config::load_whole(path, vocabulary) {
        Ok(Loaded { config, warnings, .. }) => (warnings, Secured::of(&config), Some(config)),
        Err(RefusedConfig { problems, secured }) => (problems.into_vec(), secured, None),
    };
    let problems: Problems = problems.into_iter().chain(supervisor::check_files(&secured)).collect();
    for problem in &problems {
        eprintln!("{problem}");
    }
    match config.filter(|_| !problems.refuse()) {
        Some(config) => {
            println!("{}: ok ({})", path.display(), Summary(&config));
            ExitCode::SUCCESS
        }
        None => ExitCode::FAILURE,
    }
}

/// `2 listeners, 3 routes, 2 upstreams, 6 backends`
struct Summary<'a>(&'a Config);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backends = self.0.upstreams.iter().map(|upstream| upstream.backends.len()).sum();
        let counts = [
            (self.0.listeners.len(), "listener"),
            (self.0.routes.len(), "route"),
            (self.0.upstreams.len(), "upstream"),
            (backends, "backend"),
        ];
        for (index, (count, thing)) in counts.into_iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            let plural = if count == 1 { "" } else { "s" };
            write!(f, "{separator}{count} {thing}{plural}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_there_is() {
        let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"a\"\n[upstream.a]\nbackends = [\"a:1\", \"b:1\"]\n";
        let loaded = config::parse(text, "lb.toml", &|_| None, &Vocabulary::default()).unwrap();
        assert_eq!(Summary(&loaded.config).to_string(), "1 listener, 1 route, 1 upstream, 2 backends");
    }
}
