//! `${NAME}` in the strings of the file: values from the environment.
//!
//! `${NAME}` must be set; `${NAME:-default}` stands for `default` where it is unset or empty, as in a shell. `$${` writes
//! `${`. A `$` before anything else is a `$`: patterns end in one often enough. Keys are not looked at, and a value is not
//! looked at again, so that nothing in the environment can reach further into it.

/// A string with its variables filled in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filled {
    /// The string.
    pub(super) text: String,
    /// Whether there was a variable in it.
    pub(super) changed: bool,
}

/// A variable that cannot be filled in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfilled {
    /// The variable as written, for finding it in the file.
    pub(super) written: String,
    /// Why not.
    pub(super) why: Why,
}

/// Why a variable cannot be filled in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It is not set and has no default.
    Unset(String),
    /// Its brace does not close.
    Unclosed,
    /// It is not a name.
    BadName(String),
}

/// Fills in the variables of `text`, or says which of them cannot be.
pub(super) fn fill(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Filled, Vec<Unfilled>> {
    let mut filled = Filled { text: String::with_capacity(text.len()), changed: false };
    let mut unfilled = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, variable) = rest.split_at(start);
        if let Some(before) = before.strip_suffix('$') {
            filled.text.push_str(before);
            filled.text.push_str("${");
            rest = &variable[2..];
            continue;
        }
        filled.text.push_str(before);
        let Some(end) = variable.find('}') else {
            unfilled.push(Unfilled { written: variable.to_owned(), why: Why::Unclosed });
            rest = "";
            break;
        };
        let (name, default) = match variable[2..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&variable[2..end], None),
        };
        match value(name, default, env) {
            Ok(value) => filled.text.push_str(&value),
            Err(why) => unfilled.push(Unfilled { written: variable[..=end].to_owned(), why }),
        }
        filled.changed = true;
        rest = &variable[end + 1..];
    }
    filled.text.push_str(rest);
    if unfilled.is_empty() { Ok(filled) } else { Err(unfilled) }
}

/// The names of the variables in `text`, whether they can be filled in or not.
pub(super) fn variables(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let start = rest.find("${")?;
            let (before, variable) = rest.split_at(start);
            if before.ends_with('$') {
                rest = &variable[2..];
                continue;
            }
            let (inside, after) = variable[2..].split_once('}').unwrap_or((&variable[2..], ""));
            rest = after;
            return Some(inside.split_once(":-").map_or(inside, |(name, _)| name));
        }
    })
}

fn value(name: &str, default: Option<&str>, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Why> {
    let mut characters = name.chars();
    let starts_well = characters.next().is_some_and(|first| first == '_' || first.is_ascii_alphabetic());
    if !starts_well || !characters.all(|c| c == '_' || c.is_ascii_alphanumeric()) {
        return Err(Why::BadName(name.to_owned()));
    }
    match (env(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(Why::Unset(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("10.0.0.1".into()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${HOST}".into()),
            _ => None,
        }
    }

    #[test]
    fn fills_in() {
        for (text, filled) in [
            ("", ""),
            ("plain", "plain"),
            ("${HOST}:80", "10.0.0.1:80"),
            ("${HOST}${HOST}", "10.0.0.110.0.0.1"),
            ("${PORT:-80}", "80"),
            ("${PORT:-}", ""),
            ("${EMPTY}", ""),
            ("${EMPTY:-x}", "x"),
            ("${NESTED}", "${HOST}"),
            ("$${HOST}", "${HOST}"),
            ("^a$|$$", "^a$|$$"),
            ("$", "$"),
        ] {
            assert_eq!(fill(text, &env).unwrap().text, filled, "{text}");
        }
        assert!(fill("${PORT:-80}", &env).unwrap().changed);
        assert!(!fill("$${PORT}", &env).unwrap().changed);
    }

    #[test]
    fn names_its_variables() {
        let names = |text: &str| variables(text).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names("a${B}c${D:-e}${F"), ["B", "D", "F"]);
        assert_eq!(names("$${B} $ {C}"), [""; 0]);
    }

    #[test]
    fn says_what_it_cannot() {
        let why = |text: &str| fill(text, &env).unwrap_err().into_iter().map(|it| it.why).collect::<Vec<_>>();
        assert_eq!(why("${A} ${B}"), [Why::Unset("A".into()), Why::Unset("B".into())]);
        assert_eq!(why("${HOST"), [Why::Unclosed]);
        assert_eq!(why("${}"), [Why::BadName(String::new())]);
        assert_eq!(why("${a-b}"), [Why::BadName("a-b".into())]);
    }
}
