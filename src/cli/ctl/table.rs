//! Columns for a terminal.

use std::fmt;

/// Lines of cells below their headings. A heading that begins with `>` has its column to the right.
#[derive(Debug)]
pub(super) struct TextTable(Vec<Vec<String>>);

impl TextTable {
    pub(super) fn new(headings: &[&str]) -> Self {
        Self(vec![headings.iter().map(ToString::to_string).collect()])
    }

    pub(super) fn line(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }
}

impl fmt::Display for TextTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headings = &self.0[0];
        let width = |column: usize| {
            let cells = self.0.iter().map(|cells| cells[column].trim_start_matches('>').chars().count());
            cells.max().unwrap_or(0)
        };
        for cells in &self.0 {
            let mut line = String::new();
            for (column, cell) in cells.iter().enumerate() {
                let (width, cell) = (width(column), cell.trim_start_matches('>'));
                line += &if headings[column].starts_with('>') {
                    format!("{cell:>width$}  ")
                } else {
                    format!("{cell:<width$}  ")
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let mut table = TextTable::new(&["NAME", ">N", "STATE"]);
        table.line(vec!["a".into(), "10".into(), "ready".into()]);
        table.line(vec!["longer".into(), "7".into(), String::new()]);
        assert_eq!(table.to_string(), "NAME     N  STATE\na       10  ready\nlonger   7\n");
    }
}
