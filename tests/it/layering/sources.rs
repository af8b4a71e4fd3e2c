//! The files of `src/`, and which of them are for tests only.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every file in `src/` that is not for tests only, with its text.
pub(super) fn production() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: PathBuf| {
        let text = fs::read_to_string(root.join(&file)).unwrap();
        (file, text)
    };
    let mut files: Vec<_> = sources().into_iter().map(read).collect();
    let for_tests: BTreeSet<_> = files.iter().flat_map(|(file, text)| test_files(file, text)).collect();
    // A folder of files for tests only is left out as a whole.
    let is_for_tests = |file: &Path| for_tests.iter().any(|it| *it == file || file.starts_with(it.with_extension("")));
    files.retain(|(file, _)| !is_for_tests(file));
    files
}

/// Every file in `src/`, relative to the package.
pub(super) fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut files, mut folders) = (Vec::new(), vec![root.join("src")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

/// The module at the top that a file belongs to; none for the crate's two roots.
pub(super) fn module(file: &Path) -> Option<String> {
    let top = file.components().nth(1)?.as_os_str().to_str()?;
    let name = top.strip_suffix(".rs").unwrap_or(top);
    (!matches!(name, "lib" | "main")).then(|| name.to_owned())
}

/// Files that a file includes for tests only.
pub(super) fn test_files(file: &Path, text: &str) -> Vec<PathBuf> {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let mods = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]");
    mods.filter_map(|pair| pair[1].strip_prefix("mod ")?.strip_suffix(';'))
        .map(|name| file.with_file_name(format!("{name}.rs")))
        .collect()
}

/// A file's text without comments and without what is for tests only.
pub(super) fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            // The formatter puts the closing brace of an item where the item began.
            let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
            if lines.next().is_some_and(|first| first.ends_with('{')) {
                lines.by_ref().find(|line| **line == end);
            }
            continue;
        }
        kept += line.split("//").next().unwrap_or_default();
        kept.push('\n');
    }
    kept
}
