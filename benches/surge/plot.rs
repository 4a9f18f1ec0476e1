//! Curves over time as an SVG that needs no script and no font of its own.

use std::fmt::Write as _;

use crate::Table;
use crate::common::sim::CLASSES;

const WIDTH: f64 = 720.0;
const PANEL: f64 = 130.0;
const GAP: f64 = 44.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 150.0;
/// Paid, free; readable by those who see no red or no green (Okabe & Ito 2008).
const COLOURS: [&str; 2] = ["#0072b2", "#d55e00"];

struct Curve<'a> {
    name: String,
    colour: &'a str,
    dashed: bool,
    values: &'a [f64],
}

struct Panel<'a> {
    title: &'a str,
    logarithmic: bool,
    ticks: &'a [f64],
    curves: Vec<Curve<'a>>,
}

/// Load and goodput, queues, latencies, one under the other.
pub(crate) fn svg(table: &Table) -> String {
    let by_class = |values: &'_ [Vec<f64>; 2], what: &str, dashed| {
        let curves = CLASSES.iter().zip(COLOURS).zip(values.clone());
        curves.map(|((class, colour), values)| (format!("{class}{what}"), colour, dashed, values)).collect()
    };
    let queued: Vec<(String, &str, bool, Vec<f64>)> = by_class(&table.queued, "", false);
    let mut latencies = by_class(&table.median, ", median", false);
    latencies.extend(by_class(&table.p99, ", 99 of 100", true));
    fn curves<'a>(owned: &'a [(String, &'a str, bool, Vec<f64>)]) -> Vec<Curve<'a>> {
        let curve = |(name, colour, dashed, values): &'a (String, &'a str, bool, Vec<f64>)| Curve {
            name: name.clone(),
            colour,
            dashed: *dashed,
            values,
        };
        owned.iter().map(curve).collect()
    }
    let plain = |name: &str, colour, values| Curve { name: name.to_owned(), colour, dashed: false, values };
    let load = vec![
        plain("asked for, with retries", "#777777", table.asked.as_slice()),
        plain("goodput", "#009e73", table.goodput.as_slice()),
    ];
    let panels = [
        Panel {
            title: "Device time over capacity",
            logarithmic: false,
            ticks: &ticks(&table.asked),
            curves: load,
        },
        Panel {
            title: "Requests that wait",
            logarithmic: false,
            ticks: &ticks(&table.queued.concat()),
            curves: curves(&queued),
        },
        Panel {
            title: "Seconds from acceptance to picture",
            logarithmic: true,
            ticks: &[0.01, 0.1, 1.0, 10.0],
            curves: curves(&latencies),
        },
    ];
    let height = panels.len() as f64 * (PANEL + GAP) + 30.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let last = table.seconds.last().copied().unwrap_or(1.0);
    for (panel, index) in panels.iter().zip(0..) {
        let top = GAP * 0.75 + f64::from(index) * (PANEL + GAP);
        draw(&mut text, panel, top, &table.seconds, last);
    }
    let (middle, bottom) = ((LEFT + WIDTH - RIGHT) / 2.0, height - 10.0);
    writeln!(text, "<text x=\"{middle}\" y=\"{bottom}\" text-anchor=\"middle\">seconds</text>\n</svg>")
        .unwrap();
    text
}

/// Round numbers from 0 to above the greatest value.
fn ticks(values: &[f64]) -> Vec<f64> {
    let most = values.iter().copied().fold(1e-9, f64::max);
    let unit = 10f64.powf(most.log10().floor());
    let step = [0.2, 0.5, 1.0, 2.0].map(|part| part * unit).into_iter().find(|step| most / step <= 5.0);
    let step = step.unwrap_or(unit);
    (0..=(most / step).ceil() as u32).map(|index| f64::from(index) * step).collect()
}

fn draw(text: &mut String, panel: &Panel<'_>, top: f64, seconds: &[f64], last: f64) {
    let scale = |value: f64| if panel.logarithmic { value.log10() } else { value };
    let (low, high) = (scale(panel.ticks[0]), scale(panel.ticks[panel.ticks.len() - 1]));
    let x = |second: f64| LEFT + second / last * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| top + PANEL * (1.0 - ((scale(value) - low) / (high - low)).clamp(0.0, 1.0));
    writeln!(text, "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>", top - 8.0, panel.title)
        .unwrap();
    for tick in panel.ticks {
        let (right, at) = (WIDTH - RIGHT, y(*tick));
        writeln!(text, "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/>").unwrap();
        let label = (tick * 1e6).round() / 1e6;
        writeln!(text, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 6.0, at + 4.0)
            .unwrap();
    }
    for tick in ticks(seconds) {
        if tick <= last {
            let (at, below) = (x(tick), top + PANEL + 15.0);
            let label = (tick * 1e6).round() / 1e6;
            writeln!(text, "<text x=\"{at:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{label}</text>")
                .unwrap();
        }
    }
    for (curve, index) in panel.curves.iter().zip(0..) {
        let dashes = if curve.dashed { " stroke-dasharray=\"4 3\"" } else { "" };
        let style = format!("fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\"{dashes}", curve.colour);
        let points = seconds.iter().zip(curve.values).filter(|(_, value)| value.is_finite());
        let points: Vec<String> =
            points.map(|(at, value)| format!("{:.1} {:.1}", x(*at), y(*value))).collect();
        if !points.is_empty() {
            writeln!(text, "<path d=\"M{}\" {style}/>", points.join("L")).unwrap();
        }
        let (from, at) = (WIDTH - RIGHT + 10.0, top + 8.0 + f64::from(index) * 18.0);
        writeln!(text, "<path d=\"M{from} {at}h18\" {style}/>").unwrap();
        writeln!(text, "<text x=\"{}\" y=\"{}\">{}</text>", from + 24.0, at + 4.0, curve.name).unwrap();
    }
}
