//! Reports to pictures: reads the JSON of earlier runs from one folder and writes SVG files into another.
//!
//! Which picture a report belongs to follows from its scenario. What has no report has no picture.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use plotters::prelude::*;
use serde_json::Value;

use crate::failure::Failure;

/// Where reports are and where pictures go.
#[derive(Clone, Debug, Args)]
pub(crate) struct PlotArgs {
    /// Folder with reports, one JSON object a file
    #[arg(long, value_name = "DIR", default_value = "bench/results")]
    from: PathBuf,
    /// The report of `make peers`; absent: no comparison is drawn
    #[arg(long, value_name = "FILE")]
    peers: Option<PathBuf>,
    /// Folder for the pictures; made when it is not there
    #[arg(long, value_name = "DIR", default_value = "bench/plots")]
    to: PathBuf,
}

const SIZE: (u32, u32) = (760, 420);

/// A named line through points.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// What a picture of lines says.
struct Picture<'a> {
    file: &'a str,
    title: &'a str,
    x: &'a str,
    y: &'a str,
}

/// Draws what the reports have.
///
/// # Errors
/// [`Failure`] with the file that cannot be read or written.
pub(crate) fn run(args: &PlotArgs) -> Result<(), Failure> {
    fs::create_dir_all(&args.to).map_err(|error| told(&args.to, &error))?;
    let reports = reports(&args.from)?;
    let of = |scenario: &str| {
        reports.iter().filter(|r| r["scenario"] == scenario).cloned().collect::<Vec<_>>()
    };
    let (idle, echo, storm) = (of("idle"), of("echo"), of("storm"));
    let per_connection = |name: &str, field: &str| Line {
        name: name.to_owned(),
        points: sorted(
            idle.iter().filter_map(|r| Some((number(r, "connections")?, number(r, field)?))),
        ),
    };
    draw_lines(
        &args.to,
        &Picture {
            file: "bytes.svg",
            title: "User memory a connection, idle sessions",
            x: "connections",
            y: "bytes a connection",
        },
        &[
            per_connection("edge", "edge_user_bytes_per_connection"),
            per_connection("router", "router_user_bytes_per_connection"),
        ],
    )?;
    draw_lines(
        &args.to,
        &Picture {
            file: "connects.svg",
            title: "Full sessions a second while connecting",
            x: "connections",
            y: "sessions a second",
        },
        &[per_connection("router, edge and clients on two cores", "connects_per_second")],
    )?;
    let cpu = echo.iter().filter_map(|r| {
        Some((number(&r["settings"], "idle").unwrap_or(0.0), number(r, "cpu_us_per_message")?))
    });
    draw_lines(
        &args.to,
        &Picture {
            file: "echo-idle.svg",
            title: "CPU of an echo beside idle connections",
            x: "idle connections",
            y: "us a message",
        },
        &[Line { name: "edge".to_owned(), points: sorted(cpu) }],
    )?;
    let curves: Vec<Line> = storm.iter().map(recovery).collect();
    draw_lines(
        &args.to,
        &Picture {
            file: "storm.svg",
            title: "Sessions registered again after a cut",
            x: "seconds",
            y: "sessions",
        },
        &curves,
    )?;
    if let Some(file) = &args.peers {
        let peers = read(file)?;
        draw_peers(&args.to, &peers)?;
    }
    Ok(())
}

fn recovery(report: &Value) -> Line {
    let points = report["recovery"]["curve"].as_array().into_iter().flatten();
    let points = points.filter_map(|point| Some((point[0].as_f64()?, point[1].as_f64()?)));
    let cut = report["settings"]["cut"].as_str().unwrap_or("edge");
    Line { name: format!("cut: {cut}"), points: points.collect() }
}

fn draw_peers(to: &Path, peers: &Value) -> Result<(), Failure> {
    let median = |row: &Value, field: &str| row[field]["median"].as_f64();
    let rows = |part: &str, field: &str, wanted: &dyn Fn(&Value) -> bool| {
        let rows = peers["summary"][part].as_array().into_iter().flatten();
        let bars = rows.filter(|row| wanted(row)).filter_map(|row| {
            let session = row["session"].as_str().filter(|s| *s != "ws");
            let name = row["server"].as_str()?;
            let name = session.map_or(name.to_owned(), |session| format!("{name} ({session})"));
            Some((name, median(row, field)?))
        });
        bars.collect::<Vec<_>>()
    };
    let most = |part: &str| {
        let rows = peers["summary"][part].as_array().into_iter().flatten();
        rows.filter_map(|row| row["connections"].as_u64()).max()
    };
    let at = most("echo");
    draw_bars(
        &to.join("peers-echo.svg"),
        &format!("CPU an echo of 64 bytes, {} connections: us a message", at.unwrap_or(0)),
        rows("echo", "cpu_us_per_message", &|row| row["connections"].as_u64() == at),
    )?;
    draw_bars(
        &to.join("peers-idle.svg"),
        &format!("User memory an idle connection, {}: bytes", most("idle").unwrap_or(0)),
        rows("idle", "user_bytes_per_connection", &|_| true),
    )
}

fn draw_lines(to: &Path, picture: &Picture<'_>, lines: &[Line]) -> Result<(), Failure> {
    let points = || lines.iter().flat_map(|line| &line.points);
    if points().next().is_none() {
        return Ok(());
    }
    let file = to.join(picture.file);
    let x_max = points().map(|p| p.0).fold(1.0, f64::max);
    let y_max = points().map(|p| p.1).fold(0.0, f64::max) * 1.15;
    let root = SVGBackend::new(&file, SIZE).into_drawing_area();
    let drawn = (|| {
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(picture.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(38)
            .y_label_area_size(76)
            .build_cartesian_2d(0.0..x_max * 1.02, 0.0..y_max)?;
        chart
            .configure_mesh()
            .x_desc(picture.x)
            .y_desc(picture.y)
            .x_label_formatter(&|x| short(*x))
            .y_label_formatter(&|y| short(*y))
            .light_line_style(WHITE)
            .draw()?;
        for (at, line) in lines.iter().enumerate() {
            let color = Palette99::pick(at).to_rgba();
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(2)))?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
            // A curve of hundreds of points needs no dots.
            if line.points.len() <= 16 {
                let dots = line.points.iter().map(|p| Circle::new(*p, 3, color.filled()));
                chart.draw_series(dots)?;
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .border_style(BLACK.mix(0.3))
            .background_style(WHITE)
            .draw()?;
        root.present()
    })();
    drawn.map_err(|error| told(&file, &error))
}

/// Bars on a logarithmic scale, because peers lie three powers of ten apart.
fn draw_bars(file: &Path, title: &str, mut bars: Vec<(String, f64)>) -> Result<(), Failure> {
    bars.retain(|(_, value)| *value > 0.0);
    bars.sort_by(|a, b| b.1.total_cmp(&a.1));
    let Some((_, most)) = bars.first() else { return Ok(()) };
    let least = bars.last().map_or(*most, |(_, value)| *value);
    let (from, to) = (least / 2.0, most * 3.0);
    let height = 70 + 24 * bars.len() as u32;
    let root = SVGBackend::new(file, (SIZE.0, height)).into_drawing_area();
    let drawn = (|| {
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .margin_left(190)
            .build_cartesian_2d((from..to).log_scale(), 0.0..bars.len() as f64)?;
        let ours = RGBColor(32, 96, 176);
        let theirs = RGBColor(160, 160, 160);
        for (at, (name, value)) in bars.iter().enumerate() {
            let bottom = at as f64 + 0.15;
            let color = if name.starts_with("Hawser") { ours } else { theirs };
            let bar = Rectangle::new([(from, bottom), (*value, bottom + 0.7)], color.filled());
            chart.draw_series([bar])?;
            let label =
                Text::new(number_text(*value), (*value * 1.04, bottom + 0.6), ("sans-serif", 13));
            chart.draw_series([label])?;
            let (x, y) = chart.backend_coord(&(from, bottom + 0.6));
            let style = ("sans-serif", 13).into_text_style(&root);
            root.draw(&Text::new(name.clone(), (x - 180, y), style))?;
        }
        root.present()
    })();
    drawn.map_err(|error| told(file, &error))
}

fn reports(folder: &Path) -> Result<Vec<Value>, Failure> {
    let entries = fs::read_dir(folder).map_err(|error| told(folder, &error))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    files.iter().map(|file| read(file)).collect()
}

fn read(file: &Path) -> Result<Value, Failure> {
    let text = fs::read_to_string(file).map_err(|error| told(file, &error))?;
    serde_json::from_str(&text).map_err(|error| told(file, &error))
}

fn told(file: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::Usage(format!("{}: {error}", file.display()))
}

fn number(report: &Value, field: &str) -> Option<f64> {
    report[field].as_f64()
}

fn sorted(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut points: Vec<_> = points.collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// 250, 1.5k, 2M.
fn short(value: f64) -> String {
    let (scaled, unit) = match value {
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e3 => (v / 1e3, "k"),
        v => (v, ""),
    };
    format!("{}{unit}", number_text(scaled))
}

fn number_text(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_become_pictures_and_what_has_no_report_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("results"), folder.path().join("plots"));
        fs::create_dir(&from).unwrap();
        let idle = r#"{"scenario": "idle", "connections": 1000, "connects_per_second": 9.5,
            "edge_user_bytes_per_connection": 240.5, "router_user_bytes_per_connection": 110}"#;
        let storm = r#"{"scenario": "storm", "settings": {"cut": "edge"},
            "recovery": {"curve": [[0.0, 0], [1.5, 1000]]}}"#;
        let peers = r#"{"summary": {"echo": [], "idle": [
            {"server": "Hawser", "session": "ws", "connections": 10, "user_bytes_per_connection": {"median": 250}},
            {"server": "other", "session": "mqtt", "connections": 10, "user_bytes_per_connection": {"median": 9000}}]}}"#;
        fs::write(from.join("idle.json"), idle).unwrap();
        fs::write(from.join("storm.json"), storm).unwrap();
        fs::write(folder.path().join("peers.json"), peers).unwrap();
        let peers = Some(folder.path().join("peers.json"));
        run(&PlotArgs { from: from.clone(), peers, to: to.clone() }).unwrap();
        let picture = |name: &str| fs::read_to_string(to.join(name)).unwrap_or_default();
        assert!(picture("bytes.svg").contains("bytes a connection"));
        assert!(picture("storm.svg").contains("cut: edge"));
        assert!(picture("peers-idle.svg").contains("other (mqtt)"));
        assert!(picture("echo-idle.svg").is_empty());
        fs::write(from.join("broken.json"), "{").unwrap();
        let failure = run(&PlotArgs { from, peers: None, to }).unwrap_err().to_string();
        assert!(failure.contains("broken.json"), "{failure}");
    }

    #[test]
    fn large_numbers_are_short() {
        let texts = [250.0, 1500.0, 2e6, 0.5, 19_860.0].map(short);
        assert_eq!(texts, ["250", "1.5k", "2M", "0.5", "19.9k"]);
    }
}
