//! The format of Prometheus from before OpenMetrics, `text/plain; version=0.0.4`.
//!
//! It is the same lines but for a few: a counter's name has its `_total` in `# HELP` and `# TYPE` too, or its samples have no type; there
//! are no units and no end; and quotes in help texts are not escaped.

/// From what is the same in OpenMetrics.
pub(super) fn from_openmetrics(text: &str) -> String {
    let mut classic = String::with_capacity(text.len() + text.len() / 64);
    // The line with the help comes before that with the type.
    let mut help = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let total = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
                classic.extend(["# HELP ", name, total, " ", &help.replace("\\\"", "\""), "\n"]);
            }
            // What OpenMetrics has of its own.
            let kind = if kind == "unknown" { "untyped" } else { kind };
            classic.extend(["# TYPE ", name, total, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            classic.extend([line, "\n"]);
        }
    }
    classic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_their_whole_name() {
        let open = "# HELP a_bytes Some \\\"help\\\".\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total{x=\"# \"} 1\n\
                    # HELP b Other.\n# TYPE b gauge\nb 2.0\n# HELP c None.\n# TYPE c histogram\nc_bucket{le=\"+Inf\"} 0\n# EOF\n";
        let classic = "# HELP a_bytes_total Some \"help\".\n# TYPE a_bytes_total counter\na_bytes_total{x=\"# \"} 1\n\
                       # HELP b Other.\n# TYPE b gauge\nb 2.0\n# HELP c None.\n# TYPE c histogram\nc_bucket{le=\"+Inf\"} 0\n";
        assert_eq!(from_openmetrics(open), classic);
    }
}
