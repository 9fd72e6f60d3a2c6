//! Line plots as SVG. Colours come from the page's style sheet, so that they follow its light or dark scheme.

use std::fmt::Write as _;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 34.0;

/// How values become places on an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From 0.
    Linear,
    /// By powers of ten.
    Log,
    /// Percentiles: 50, 90, 99, 99.9 and so on have equal distances.
    Percentile,
}

/// A line.
#[derive(Debug, Clone)]
pub struct Line {
    /// What it shows.
    pub label: String,
    /// Its colour: 0 to 5.
    pub colour: usize,
    /// Dashed.
    pub dashed: bool,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// A plot.
pub struct Plot<'a> {
    /// Its heading, which says what the y axis shows.
    pub title: &'a str,
    /// What the x axis shows.
    pub x_label: &'a str,
    /// Of the x axis.
    pub x: Scale,
    /// Of the y axis.
    pub y: Scale,
    /// Writes a value of the y axis.
    pub y_text: fn(f64) -> String,
    /// What is drawn.
    pub lines: &'a [Line],
}

impl Plot<'_> {
    /// The plot as an `<svg>` element; empty if there is nothing to draw.
    #[must_use]
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        if points().count() < 2 {
            return String::new();
        }
        let (x, y) = (
            Axis::new(self.x, points().map(|point| point.0)),
            Axis::new(self.y, points().map(|point| point.1)),
        );
        let mut svg = format!(
            "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
            escape(self.title),
            escape(self.title)
        );
        self.grid(&mut svg, &x, &y);
        for line in self.lines {
            draw(&mut svg, line, &x, &y, self.y_text);
        }
        svg.push_str("</svg></figure>\n");
        svg
    }

    fn grid(&self, svg: &mut String, x: &Axis, y: &Axis) {
        for value in y.ticks() {
            let at = y_place(y, value);
            let text = escape(&(self.y_text)(value));
            let (right, label, base) = (WIDTH - RIGHT, LEFT - 6.0, at + 3.5);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>\
                 <text x=\"{label}\" y=\"{base:.1}\" text-anchor=\"end\">{text}</text>"
            );
        }
        for value in x.ticks() {
            let at = x_place(x, value);
            let (bottom, base) = (HEIGHT - BOTTOM, HEIGHT - BOTTOM + 14.0);
            let text = plain(value);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\"/>\
                 <text x=\"{at:.1}\" y=\"{base}\" text-anchor=\"middle\">{text}</text>"
            );
        }
        let (middle, base) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 5.0);
        let label = escape(self.x_label);
        let _ = writeln!(
            svg,
            "<text x=\"{middle}\" y=\"{base}\" text-anchor=\"middle\">{label}</text>"
        );
    }
}

fn draw(svg: &mut String, line: &Line, x: &Axis, y: &Axis, y_text: fn(f64) -> String) {
    let colour = line.colour % 6;
    let dash = if line.dashed { " dashed" } else { "" };
    let path: String = line
        .points
        .iter()
        .map(|point| format!("{:.1},{:.1} ", x_place(x, point.0), y_place(y, point.1)))
        .collect();
    let _ = writeln!(
        svg,
        "<polyline class=\"c{colour}{dash}\" points=\"{}\"/>",
        path.trim_end()
    );
    if line.points.len() > 60 {
        return;
    }
    for (at, value) in &line.points {
        let _ = writeln!(
            svg,
            "<circle class=\"c{colour}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2\"><title>{}: {} at {}</title></circle>",
            x_place(x, *at),
            y_place(y, *value),
            escape(&line.label),
            escape(&y_text(*value)),
            plain(*at)
        );
    }
}

fn x_place(axis: &Axis, value: f64) -> f64 {
    LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)
}

fn y_place(axis: &Axis, value: f64) -> f64 {
    HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)
}

struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<_> = values.filter(|value| value.is_finite()).collect();
        let max = values.iter().copied().fold(0.0, f64::max);
        let min = values.iter().copied().fold(f64::INFINITY, f64::min);
        let (from, to) = match scale {
            Scale::Linear => (0.0, round_up(max)),
            Scale::Log => {
                let from = min.max(1e-9).log10().floor();
                (from, max.max(1e-9).log10().ceil().max(from + 1.0))
            }
            Scale::Percentile => (0.0, nines(max).max(1.0)),
        };
        Self { scale, from, to }
    }

    /// From 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let value = match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(1e-9).log10(),
            Scale::Percentile => nines(value),
        };
        ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => (0..=4).map(|i| self.to * f64::from(i) / 4.0).collect(),
            Scale::Log => {
                let step = ((self.to - self.from) / 6.0).ceil().max(1.0) as usize;
                let powers = (self.from as i32..=self.to as i32).step_by(step);
                powers.map(|power| 10_f64.powi(power)).collect()
            }
            Scale::Percentile => [0.0, 50.0, 90.0, 99.0, 99.9, 99.99]
                .into_iter()
                .filter(|percent| nines(*percent) <= self.to + 1e-6)
                .collect(),
        }
    }
}

/// How many nines a percentile has: 90 has one, 99.9 has three.
fn nines(percent: f64) -> f64 {
    -(1.0 - percent.clamp(0.0, 99.999) / 100.0).log10()
}

/// The next of 1, 2, 4, 6, 8, 10 times a power of ten: its quarters are short numbers.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.6, 2.0, 2.4, 3.0, 4.0, 6.0, 8.0, 10.0];
    let fits = steps.into_iter().find(|step| step * power >= value);
    fits.unwrap_or(10.0) * power
}

fn plain(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text for HTML and SVG.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_what_is_drawn() {
        for max in [0.3, 1.0, 7.0, 61.0, 2560.0, 99_999.0] {
            assert!(round_up(max) >= max && round_up(max) <= max * 1.7, "{max}");
        }
        let axis = Axis::new(Scale::Percentile, [1.0, 99.9].into_iter());
        assert!((axis.place(99.9) - 1.0).abs() < 1e-9);
        assert!((axis.place(90.0) - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!(axis.ticks(), [0.0, 50.0, 90.0, 99.0, 99.9]);
        let axis = Axis::new(Scale::Log, [2e4, 3e6].into_iter());
        assert_eq!(axis.ticks().len(), 4);
    }

    #[test]
    fn text_is_escaped_and_nothing_is_not_drawn() {
        let line = Line {
            label: "<a&\"b>".to_owned(),
            colour: 0,
            dashed: false,
            points: vec![(0.0, 1.0), (1.0, 2.0)],
        };
        let mut plot = Plot {
            title: "<t>",
            x_label: "x",
            x: Scale::Linear,
            y: Scale::Linear,
            y_text: plain,
            lines: &[line],
        };
        let svg = plot.svg();
        assert!(svg.contains("&lt;a&amp;&quot;b&gt;") && svg.contains("&lt;t&gt;") && !svg.contains("<t>"));
        plot.lines = &[];
        assert_eq!(plot.svg(), "");
    }
}
