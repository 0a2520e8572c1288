//! The plots, as SVG.

use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::combinators::{BindKeyPoints, IntoLogRange};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::figures::Report;
use super::markdown::round_time;
use crate::Result;
use crate::conditions::regime;
use crate::peers::Group;
use crate::sections::contest::Row;
use crate::sections::fleet;
use crate::sections::throughput::{self, CALLERS};
use crate::work::Work;

const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(225, 225, 225);
/// A README is about as wide: nothing is scaled down until it is hard to read.
const WIDTH: u32 = 1000;
const LEGEND_WIDTH: u32 = 220;
const FLOORS: [RGBColor; 3] = [INK, RGBColor(115, 115, 115), RGBColor(170, 170, 170)];
/// Ours stand out; all are told apart by the colour-blind.
const OURS: [RGBColor; 4] = [
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(166, 54, 3),
    RGBColor(253, 174, 107),
];
const PEERS: [RGBColor; 9] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(117, 107, 177),
    RGBColor(8, 81, 156),
    RGBColor(65, 171, 93),
    RGBColor(150, 150, 150),
    RGBColor(99, 99, 99),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Writes the plots for which `report` has figures into `directory`.
///
/// # Errors
///
/// When a file cannot be written.
pub fn write(report: &Report, directory: &Path) -> Result<()> {
    latency(report, &directory.join("latency.svg"))?;
    let by_callers = |work| {
        let scene = move |callers| throughput::scene(callers, work);
        lines(report, "throughput", &CALLERS, &scene, |ns| 1e9 / ns)
    };
    let panels = [
        ("empty closure", by_callers(Work::Empty)),
        ("closure that opens a UDP socket", by_callers(Work::Socket)),
    ];
    let axes = Axes {
        title: "Throughput of one namespace against its callers",
        x: "callers",
        y: "calls a second",
        format: &|rate| match rate {
            1e6.. => format!("{:.0} M", rate / 1e6),
            1e3..1e6 => format!("{:.0} k", rate / 1e3),
            _ => format!("{rate:.0}"),
        },
    };
    chart(&panels, &axes, &directory.join("throughput.svg"))?;
    let sizes = [1, 10, 100, 1000];
    let panels = [(
        "empty closure, each call to a namespace drawn by lot",
        lines(report, fleet::SECTION, &sizes, &fleet::scene, |ns| ns),
    )];
    let axes = Axes {
        title: "Cost of a call against the number of namespaces",
        x: "namespaces",
        y: "time of a call, p50",
        format: &|ns| round_time(*ns),
    };
    chart(&panels, &axes, &directory.join("namespaces.svg"))
}

/// One contestant's way through a chart.
struct Line {
    label: String,
    group: Group,
    points: Vec<(f64, f64)>,
}

fn lines(
    report: &Report,
    section: &str,
    sizes: &[usize],
    scene: &dyn Fn(usize) -> String,
    scale: impl Fn(f64) -> f64,
) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for &size in sizes {
        let scene = scene(size);
        let rows = (report.rows.iter()).filter(|row| row.section == section && row.scene == scene);
        for row in rows {
            let point = (size as f64, scale(row.ns.median));
            match lines.iter_mut().find(|line| line.label == row.label) {
                Some(line) => line.points.push(point),
                None => lines.push(Line {
                    label: row.label.clone(),
                    group: row.group,
                    points: vec![point],
                }),
            }
        }
    }
    lines
}

/// A colour for each label, by group.
fn colours<'a>(of: impl Iterator<Item = (&'a str, Group)>) -> Vec<(&'a str, Group, RGBColor)> {
    let mut floors = FLOORS.iter().cycle();
    let (mut ours, mut peers) = (OURS.iter().cycle(), PEERS.iter().cycle());
    let mut known: Vec<(&str, Group, RGBColor)> = Vec::new();
    for (label, group) in of {
        if known.iter().any(|(other, ..)| *other == label) {
            continue;
        }
        let colour = match group {
            Group::Floor => floors.next(),
            Group::Ours => ours.next(),
            Group::Peer => peers.next(),
        };
        known.push((label, group, *colour.unwrap_or(&INK)));
    }
    known
}

fn colour_of(known: &[(&str, Group, RGBColor)], label: &str) -> RGBColor {
    let found = known.iter().find(|(other, ..)| *other == label);
    found.map_or(INK, |(.., colour)| *colour)
}

/// A range that leaves some room, on a logarithmic scale.
fn around(values: impl Iterator<Item = f64> + Clone) -> Option<Range<f64>> {
    let low = values.clone().min_by(f64::total_cmp)?;
    let high = values.max_by(f64::total_cmp)?;
    Some(low / 2.0..high * 1.6)
}

fn text(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK)
}

/// Names and colours, from the top left corner of `area` down.
fn legend(area: &Area<'_>, entries: &[(&str, Group, RGBColor)]) -> Result<()> {
    for (at, (label, group, colour)) in entries.iter().enumerate() {
        let y = 60 + 20 * i32::try_from(at)?;
        let filled = colour.filled();
        match group {
            Group::Floor => area.draw(&Rectangle::new([(6, y - 1), (22, y + 1)], filled))?,
            _ => area.draw(&Circle::new((14, y), 4, filled))?,
        }
        let style = text(14).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(label.to_string(), (28, y), style))?;
    }
    Ok(())
}

/// The regimes side by side; in each, a dot for every contestant with a whisker
/// up to its 99th percentile, and the floors as lines across.
fn latency(report: &Report, path: &Path) -> Result<()> {
    let rows = |scene: &str| -> Vec<&Row> {
        (report.rows.iter())
            .filter(|row| row.section == "latency" && row.scene == scene)
            .collect()
    };
    let scenes: Vec<(&str, Vec<&Row>)> = (regime::ALL.iter())
        .map(|regime| (regime.name, rows(regime.name)))
        .filter(|(_, rows)| !rows.is_empty())
        .collect();
    let all = || scenes.iter().flat_map(|(_, rows)| rows);
    let figures = all().flat_map(|row| [row.ns.median, row.p99_ns.median]);
    let Some(range) = around(figures) else {
        return Ok(());
    };
    let colours = colours(all().map(|row| (&*row.label, row.group)));
    let colour = |label: &str| colour_of(&colours, label);

    let area = SVGBackend::new(path, (WIDTH, 560)).into_drawing_area();
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(WIDTH - LEGEND_WIDTH);
    let width = scenes.len() as f64;
    let mut chart = ChartBuilder::on(&left)
        .caption("One call, empty closure: p50, whiskers to p99", text(20))
        .margin(10)
        .y_label_area_size(75)
        .build_cartesian_2d(0.0..width, range.clone().log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .y_label_style(text(14))
        .y_desc("time of a call")
        .axis_desc_style(text(14))
        .y_label_formatter(&|ns| round_time(*ns))
        .draw()?;
    for (at, (scene, rows)) in scenes.iter().enumerate() {
        let left = at as f64;
        if at > 0 {
            let edge = vec![(left, range.start), (left, range.end)];
            chart.draw_series([PathElement::new(edge, GRID.stroke_width(2))])?;
        }
        let style = text(14).pos(Pos::new(HPos::Center, VPos::Bottom));
        chart.draw_series([Text::new(
            scene.to_string(),
            (left + 0.5, range.start * 1.05),
            style,
        )])?;
        let (floors, others): (Vec<&Row>, Vec<&Row>) =
            rows.iter().partition(|row| row.group == Group::Floor);
        for floor in floors {
            let across = vec![
                (left + 0.03, floor.ns.median),
                (left + 0.97, floor.ns.median),
            ];
            let colour = colour(&floor.label);
            chart.draw_series([PathElement::new(across, colour.stroke_width(2))])?;
        }
        for (index, row) in others.iter().enumerate() {
            let x = left + (index as f64 + 1.0) / (others.len() as f64 + 1.0);
            let colour = colour(&row.label);
            let whisker = vec![(x, row.ns.median), (x, row.p99_ns.median)];
            chart.draw_series([PathElement::new(whisker, colour.mix(0.5).stroke_width(1))])?;
            let size = if row.group == Group::Ours { 6 } else { 4 };
            chart.draw_series([Circle::new((x, row.ns.median), size, colour.filled())])?;
        }
    }
    legend(&right, &colours)?;
    area.present()?;
    Ok(())
}

/// What a chart's axes say.
struct Axes<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
    format: &'a dyn Fn(&f64) -> String,
}

/// Lines on two logarithmic axes; panels side by side share their legend.
fn chart(panels: &[(&str, Vec<Line>)], axes: &Axes<'_>, path: &Path) -> Result<()> {
    let panels: Vec<_> = panels
        .iter()
        .filter(|(_, lines)| !lines.is_empty())
        .collect();
    let all = || panels.iter().flat_map(|(_, lines)| lines);
    let points = || all().flat_map(|line| &line.points);
    let (Some(ys), Some(xs)) = (
        around(points().map(|(_, y)| *y)),
        around(points().map(|(x, _)| *x)),
    ) else {
        return Ok(());
    };
    let colours = colours(all().map(|line| (&*line.label, line.group)));
    let colour = |label: &str| colour_of(&colours, label);
    let mut ticks: Vec<f64> = points().map(|(x, _)| *x).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();

    let area = SVGBackend::new(path, (WIDTH, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(WIDTH - LEGEND_WIDTH);
    let left = left.margin(8, 0, 0, 0).titled(axes.title, text(20))?;
    for (panel, (title, lines)) in left.split_evenly((1, panels.len())).iter().zip(&panels) {
        let mut chart = ChartBuilder::on(panel)
            .caption(title, text(15))
            .margin(10)
            .x_label_area_size(45)
            .y_label_area_size(75)
            .build_cartesian_2d(
                xs.clone().log_scale().with_key_points(ticks.clone()),
                ys.clone().log_scale(),
            )?;
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .x_desc(axes.x)
            .y_desc(axes.y)
            .label_style(text(14))
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| (axes.format)(y))
            .draw()?;
        for line in lines {
            let colour = colour(&line.label);
            let width = if line.group == Group::Ours { 3 } else { 1 };
            chart.draw_series(LineSeries::new(
                line.points.iter().copied(),
                colour.stroke_width(width),
            ))?;
            let dots = line.points.iter();
            chart.draw_series(dots.map(|point| Circle::new(*point, 3, colour.filled())))?;
        }
    }
    legend(&right, &colours)?;
    area.present()?;
    Ok(())
}
