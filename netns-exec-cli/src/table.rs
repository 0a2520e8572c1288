//! Tables that fit: those of `ls` and `audit`, whose rows are as wide as names are.

use std::env;

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, TableComponent, presets};

use crate::failure::Failure;
use crate::output;

/// Where a terminal does not say how wide it is, and where there is none.
const USUAL_WIDTH: usize = 80;

/// What the user may say about a table.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Show all columns in full, however wide the table becomes; otherwise it is
    /// made to fit the terminal, or $COLUMNS, or 80 columns
    #[arg(long, conflicts_with = "json")]
    wide: bool,

    /// Leave out the headings and the lines around them
    #[arg(long, conflicts_with = "json")]
    no_header: bool,
}

/// One thing to do without when a table is too wide; `usize` is a column.
#[derive(Clone, Copy)]
pub(crate) enum Saving {
    /// Show the next shorter text of every cell.
    Shorten(usize),
    Drop(usize),
}

/// Which colour a row has, where there are colours.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Doubtful,
    Bad,
}

pub(crate) struct Table<'a> {
    headings: &'a [&'a str],
    /// Those with numbers.
    right: &'a [usize],
    /// In the order in which they are made.
    savings: &'a [Saving],
    rows: Vec<(Tone, Vec<Texts>)>,
}

/// The text of a cell, from the longest to the shortest; one at least.
pub(crate) struct Texts(Vec<String>);

impl From<String> for Texts {
    fn from(text: String) -> Self {
        Texts(vec![text])
    }
}

impl From<Vec<String>> for Texts {
    fn from(texts: Vec<String>) -> Self {
        Texts(texts)
    }
}

impl Texts {
    fn at(&self, level: usize) -> &str {
        let last = self.0.len() - 1;
        &self.0[level.min(last)]
    }

    fn width(&self, level: usize) -> usize {
        let lines = self.at(level).lines();
        lines.map(|line| line.chars().count()).max().unwrap_or(0)
    }
}

/// Which columns are shown, and how short.
struct Layout {
    shown: Vec<bool>,
    levels: Vec<usize>,
}

impl<'a> Table<'a> {
    pub(crate) fn new(
        headings: &'a [&'a str],
        right: &'a [usize],
        savings: &'a [Saving],
    ) -> Table<'a> {
        Table {
            headings,
            right,
            savings,
            rows: Vec::new(),
        }
    }

    /// Adds a row, with a cell for every heading.
    pub(crate) fn row(&mut self, tone: Tone, cells: Vec<Texts>) {
        assert_eq!(cells.len(), self.headings.len(), "a cell for each heading");
        self.rows.push((tone, cells));
    }

    pub(crate) fn print(&self, options: &Options) -> Result<(), Failure> {
        if options.no_header && self.rows.is_empty() {
            return Ok(());
        }
        output::line(self.render(options, width(options.wide), output::has_colours(false)))
    }

    fn render(&self, options: &Options, width: usize, colours: bool) -> String {
        let layout = self.layout(width, !options.no_header);
        let shown = |column: &usize| layout.shown[*column];
        let columns: Vec<usize> = (0..self.headings.len()).filter(shown).collect();
        let mut table = comfy_table::Table::new();
        table.set_content_arrangement(ContentArrangement::Disabled);
        if options.no_header {
            table.load_preset(presets::NOTHING);
        } else {
            table
                .load_preset(presets::UTF8_HORIZONTAL_ONLY)
                .remove_style(TableComponent::HorizontalLines)
                .remove_style(TableComponent::MiddleIntersections)
                .set_header(columns.iter().map(|&column| self.headings[column]));
        }
        if colours {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        for (tone, cells) in &self.rows {
            table.add_row(columns.iter().map(|&column| {
                let cell = Cell::new(cells[column].at(layout.levels[column]));
                match tone {
                    Tone::Plain => cell,
                    Tone::Good => cell.fg(Color::Green),
                    Tone::Doubtful => cell.fg(Color::Yellow),
                    Tone::Bad => cell.fg(Color::Red),
                }
            }));
        }
        for (index, column) in columns.iter().enumerate() {
            if self.right.contains(column)
                && let Some(column) = table.column_mut(index)
            {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let text = table.to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines.join("\n")
    }

    /// Saves until it fits, or nothing more can be saved.
    fn layout(&self, width: usize, header: bool) -> Layout {
        let mut layout = Layout {
            shown: vec![true; self.headings.len()],
            levels: vec![0; self.headings.len()],
        };
        for saving in self.savings {
            if self.width(&layout, header) <= width {
                break;
            }
            match *saving {
                Saving::Shorten(column) => layout.levels[column] += 1,
                Saving::Drop(column) => layout.shown[column] = false,
            }
        }
        layout
    }

    fn width(&self, layout: &Layout, header: bool) -> usize {
        let column = |index: usize| {
            let cells = self.rows.iter().map(|(_, cells)| &cells[index]);
            let widest = cells.map(|cell| cell.width(layout.levels[index])).max();
            let heading = if header {
                self.headings[index].len()
            } else {
                0
            };
            // A blank on each side.
            widest.unwrap_or(0).max(heading) + 2
        };
        let columns: Vec<usize> = (0..self.headings.len())
            .filter(|&index| layout.shown[index])
            .map(column)
            .collect();
        // Below a header, another blank between two.
        let between = if header {
            columns.len().saturating_sub(1)
        } else {
            0
        };
        columns.iter().sum::<usize>() + between
    }
}

fn width(wide: bool) -> usize {
    if wide {
        return usize::MAX;
    }
    let told = env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    told.or_else(|| comfy_table::Table::new().width().map(usize::from))
        // A terminal that nothing was told says 0.
        .filter(|&columns| columns > 0)
        .unwrap_or(USUAL_WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADINGS: [&str; 3] = ["ID", "NAMES", "INODE"];
    const SAVINGS: [Saving; 3] = [Saving::Shorten(1), Saving::Drop(2), Saving::Shorten(1)];

    fn rendered(width: usize, no_header: bool) -> String {
        let mut table = Table::new(&HEADINGS, &[0], &SAVINGS);
        let names = ["blue and more", "blue (2)", "blue"]
            .map(String::from)
            .to_vec();
        table.row(
            Tone::Bad,
            vec![
                "7".to_owned().into(),
                names.into(),
                "4026531840".to_owned().into(),
            ],
        );
        let options = Options {
            wide: false,
            no_header,
        };
        table.render(&options, width, false)
    }

    #[test]
    fn what_does_not_fit_is_saved_in_order() {
        for (width, shown, saved) in [
            (80, "7   blue and more   4026531840", "(2)"),
            (30, "7   blue (2)   4026531840", "and"),
            (20, "7   blue (2)", "4026531840"),
            (14, "7   blue", "(2)"),
            (1, "7   blue", "(2)"),
        ] {
            let text = rendered(width, false);
            assert!(
                text.contains(shown) && !text.contains(saved),
                "{width}: {text}"
            );
        }
    }

    #[test]
    fn without_a_header_there_are_rows_only() {
        assert_eq!(rendered(80, true), " 7  blue and more  4026531840");
    }

    #[test]
    fn every_line_fits_when_it_can() {
        for width in 12..60 {
            for line in rendered(width, false).lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn colours_are_there_when_they_are_wanted() {
        let mut table = Table::new(&["ID"], &[], &[]);
        table.row(Tone::Bad, vec!["7".to_owned().into()]);
        let options = Options {
            wide: false,
            no_header: false,
        };
        assert!(table.render(&options, 80, true).contains('\x1b'));
        assert!(!table.render(&options, 80, false).contains('\x1b'));
    }
}
