//! What every form of a report promises, whatever stands in the report.

use super::sample::{HOSTILE, report};
use super::words::{reason_words, verdict};
use super::{csv, html, markdown};
use crate::audit::report::{Figure, Group, ModelKind, Report, Scope, Status, Test};
use crate::audit::settings::UtilityMatch;
use crate::audit::statistics::Undefined;

/// Walks the tags of a page with a stack; returns what is wrong. Knows the elements that have no end.
fn faults(page: &str) -> Vec<String> {
    let empty = ["meta", "!DOCTYPE"];
    let (mut open, mut faults): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        let Some(length) = rest[start..].find('>') else {
            faults.push("a tag does not end".to_owned());
            break;
        };
        let tag = &rest[start + 1..start + length];
        rest = &rest[start + length + 1..];
        if tag.matches('"').count() % 2 == 1 {
            faults.push(format!("quotes in <{tag}>"));
        }
        let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap_or_default().to_owned();
        if tag.starts_with('/') {
            match open.pop() {
                Some(last) if last == name => {}
                last => faults.push(format!("</{name}> ends {last:?}")),
            }
        } else if !tag.ends_with('/') && !empty.contains(&name.as_str()) {
            open.push(name);
        }
    }
    faults.extend(open.into_iter().map(|name| format!("<{name}> has no end")));
    faults
}

/// Reports that lack what others have.
fn reports() -> Vec<Report> {
    let full = report();
    let mut reports = vec![full.clone()];
    let mut bare = full.clone();
    (bare.figures, bare.reliability, bare.rocs, bare.preferences) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    (bare.groups, bare.models, bare.warnings, bare.base) = (Vec::new(), Vec::new(), Vec::new(), None);
    reports.push(bare);
    for status in [Status::LowSupport, Status::Undefined, Status::NotMeasured, Status::Suppressed] {
        let mut one = full.clone();
        one.figures.iter_mut().for_each(|figure| figure.status = status);
        reports.push(one);
    }
    // Figures that point nowhere, and numbers at the ends of their range.
    let mut odd = full.clone();
    for (i, figure) in odd.figures.iter_mut().enumerate() {
        match i % 4 {
            0 => figure.model = 99,
            1 => figure.value = Some(f64::MAX),
            2 => figure.value = Some(f64::MIN),
            _ => figure.value = Some(5e-324),
        }
    }
    odd.rocs[0].others = 0;
    odd.rocs[0].points = vec![(0.0, 0.0)];
    odd.reliability[0].bins.clear();
    reports.push(odd);
    let mut one = full;
    one.models.truncate(1);
    reports.push(one);
    reports
}

#[test]
fn a_page_is_well_formed_and_stands_alone() {
    for report in reports() {
        let page = html(&report);
        assert!(page.starts_with("<!DOCTYPE html>\n"));
        assert_eq!(faults(&page), Vec::<String>::new());
        assert!(page.contains("Content-Security-Policy"));
        for word in [
            "://",
            "<script",
            "javascript:",
            " onload",
            " onerror",
            " onclick",
            "@import",
            "url(",
            "xmlns",
            "<link",
            "<img",
            "<iframe",
        ] {
            assert!(!page.contains(word), "{word}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf\"") && !page.contains(">inf<"));
    }
}

#[test]
fn the_checker_finds_what_is_not_well_formed() {
    for page in ["<p>", "<p></b>", "<p><b></p></b>", "</p>", "<a x=\"></a>", "<p"] {
        assert_ne!(faults(page), Vec::<String>::new(), "{page}");
    }
}

#[test]
fn the_same_report_gives_the_same_bytes() {
    for (one, other) in reports().iter().zip(&reports()) {
        assert_eq!(html(one), html(other));
        assert_eq!(markdown(one), markdown(other));
        assert_eq!(csv(one), csv(other));
    }
}

#[test]
fn no_form_judges() {
    for report in reports() {
        for text in [html(&report), markdown(&report)] {
            let text = text.to_lowercase().replace("fairlearn", "");
            assert!(!text.contains("fair") && !text.contains("compliant") && !text.contains("unbiased"));
        }
    }
}

#[test]
fn a_suppressed_value_is_in_no_form_for_people() {
    let report = report();
    assert!(report.figures.iter().any(|figure| figure.value == Some(0.987_654)));
    for text in [html(&report), markdown(&report)] {
        assert!(!text.contains("0.988") && !text.contains("0.9876"));
        assert!(text.contains("suppressed: group too small to be published"));
    }
    assert!(!csv(&report).contains("0.987654"));
}

#[test]
fn a_figure_without_a_value_says_why() {
    let report = report();
    for text in [html(&report), markdown(&report)] {
        assert!(text.contains("not enough data: no positives (n 12)"));
        assert!(text.contains("not measured: not available for this model or task"));
        assert!(text.contains("few rows: n 12"));
        assert!(text.contains("(missing)"));
        assert!(text.contains("Membership inference: not asked for."));
    }
}

#[test]
fn a_page_has_all_its_sections() {
    let page = html(&report());
    let sections = [
        "Read this first",
        "What was audited",
        "Group sizes",
        "Summary",
        "By region",
        "Impact ratios",
        "0.8: screening rule",
        "Calibration",
        "Membership inference",
        "hatched: cannot be resolved",
        "Token preferences",
        "Not measured",
        "Not enough data",
        "All figures",
        "What the measures are",
        "To make it again",
        "&quot;seed&quot;: 7",
        "against rank",
        "groups from model to model",
        "differences between models",
        "evidence of a gap",
        "no evidence of a gap",
    ];
    for section in sections {
        assert!(page.contains(section), "{section}");
    }
    let svgs = page.matches("<svg role=\"img\" aria-label=\"").count();
    assert_eq!(page.matches("<svg").count(), svgs + page.matches("<svg class=\"key\" aria-hidden=\"true\"").count());
    assert!(svgs > 30);
    assert_eq!(page.matches("<th>").count(), 0);
}

#[test]
fn markdown_tables_keep_their_columns() {
    for report in reports() {
        let text = markdown(&report);
        assert!(text.starts_with("# "));
        assert!(!text.contains("<script") && !text.contains('\r'));
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.windows(2).filter(|pair| pair.iter().all(|line| line.starts_with('|'))) {
            assert_eq!(columns(pair[0]), columns(pair[1]), "{}", pair[1]);
        }
    }
}

#[test]
fn a_gap_is_drawn_against_each_thing_that_models_differ_in() {
    let against = |report: &Report| {
        let page = html(report);
        let titles = page.split("accuracy: gap between groups against ").skip(1);
        let mut words: Vec<String> =
            titles.map(|rest| rest.split(['<', '.']).next().unwrap_or_default().to_owned()).collect();
        words.sort();
        words.dedup();
        words
    };
    let train = |report: &mut Report, model: usize, rank: Option<u64>, alpha: f64, steps: u64, rate: f64| {
        let training = report.models[model].training.as_mut().unwrap();
        (training.rank, training.alpha) = (rank, rank.map(|_| alpha));
        training.settings = serde_json::json!({ "seed": model, "length": { "steps": steps }, "learning_rate": rate });
    };
    let mut one = report();
    // Alpha follows the rank.
    assert_eq!(against(&one), ["rank"]);
    train(&mut one, 1, Some(8), 16.0, 100, 0.0015);
    train(&mut one, 2, Some(64), 64.0, 200, 0.002);
    train(&mut one, 3, None, 0.0, 100, 0.002);
    assert_eq!(against(&one), ["learning rate", "rank", "steps of training"]);
    let page = html(&one);
    assert!(page.contains(">0.0015<") && page.contains(">200<"));
    let mut kept = one.clone();
    for (model, step) in [(1, 10), (2, 100), (3, 20)] {
        train(&mut kept, model, Some(8), 16.0, 100, 0.0015);
        kept.models[model].kind = ModelKind::Adapter;
        kept.models[model].training.as_mut().unwrap().step = Some(step);
    }
    assert_eq!(against(&kept), ["step of the checkpoint"]);
    // In the order of numbers, and told in the table of models.
    let page = html(&kept);
    let places: Vec<_> = [">10<", ">20<", ">100<"].iter().map(|tick| page.find(tick).unwrap()).collect();
    assert!(places.is_sorted(), "{places:?}");
    assert!(markdown(&kept).contains("job-1, step 20 on reviews"));
    train(&mut one, 2, Some(8), 4.0, 100, 0.0015);
    train(&mut one, 3, Some(8), 4.0, 100, 0.0015);
    one.models[3].kind = ModelKind::Adapter;
    one.models[3].scale = 0.5;
    assert_eq!(against(&one), ["alpha", "scale of the change"]);
}

#[test]
fn differences_of_gaps_stand_beside_those_of_utility() {
    let mut report = report();
    let lines = |report: &Report| {
        let text = markdown(report);
        let of = text.split("## Differences of gaps beside utility (accuracy): region").nth(1).unwrap();
        of.lines().skip(4).take_while(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = lines(&report);
    assert!(before[0].starts_with("| accuracy | lora-r8 minus base |"), "{before:?}");
    assert!(before.iter().all(|line| line.ends_with("| – |")), "{before:?}");
    let asked = UtilityMatch { reference: None, measure: "accuracy".into(), tolerance: 0.05 };
    report.matched = crate::audit::utility::matched(&report.figures, &report.models, &asked);
    report.settings.utility_match = Some(asked);
    let after = lines(&report);
    assert!(after[0].ends_with("| nearest; within 0.050 |"), "{after:?}");
    assert!(after[1].ends_with("| not the nearest |"), "{after:?}");
    assert!(html(&report).contains("nearest; within 0.050"));
}

#[test]
fn seeds_are_taken_together_in_a_table() {
    let caption = "Over the seeds of models that were trained alike";
    let mut report = report();
    assert!(!html(&report).contains(caption) && !markdown(&report).contains(caption));
    for model in [1, 2] {
        let training = report.models[model].training.as_mut().unwrap();
        (training.rank, training.alpha, training.seed) = (Some(8), Some(16.0), model as u64);
        training.settings = serde_json::json!({ "seed": model });
    }
    let line = "| lora-r8, lora-r64 | accuracy | gap between groups: region | 2 of 2 | 0.095 | 0.021 | 0.080 | 0.110 |";
    assert!(markdown(&report).contains(line), "{}", markdown(&report));
    assert!(html(&report).contains(caption));
}

#[test]
fn csv_has_a_line_a_figure_and_no_formula() {
    for report in reports() {
        let text = csv(&report);
        let mut reader = ::csv::Reader::from_reader(text.as_bytes());
        let header = reader.headers().unwrap().clone();
        assert_eq!(
            header.iter().collect::<Vec<_>>().join(","),
            "model,versus,attribute,scope,group,control,control_value,measure,class,value,status,reason,n,weight,groups_defined,\
             groups_total,interval_method,level,low,high,test,p,p_adjusted,null,detectable,smallest_group,largest_group"
        );
        let lines: Vec<::csv::StringRecord> = reader.records().collect::<Result<_, _>>().unwrap();
        assert_eq!(lines.len(), report.figures.len());
        for (line, figure) in lines.iter().zip(&report.figures) {
            let words = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 16, 20, 25, 26];
            for word in words.map(|column| &line[column]) {
                assert!(!word.starts_with(['=', '+', '-', '@', '\t', '\r']), "{word}");
            }
            let hidden = figure.status == Status::Suppressed;
            let value = figure.value.filter(|_| !hidden);
            assert_eq!(line[9].parse::<f64>().ok(), value);
            let named = figure.extremes.iter().filter(|_| !hidden).count();
            assert_eq!([25, 26].iter().filter(|column| !line[**column].is_empty()).count(), named);
        }
    }
    assert!(csv(&report()).contains(&format!("'{}", HOSTILE[1])));
}

#[test]
fn csv_tells_a_terminal_nothing() {
    let mut report = report();
    report.models[1].name = "a\u{1b}[2J\u{7}b\nc\td\u{9b}e\u{202e}f".to_owned();
    let text = csv(&report);
    assert!(text.contains("a\u{fffd}[2J\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}e\u{fffd}f"));
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    assert_eq!(text.lines().count(), report.figures.len() + 1);
}

#[test]
fn a_group_of_missing_values_is_no_group_named_so() {
    let mut report = report();
    report.figures.retain(|figure| matches!(figure.scope, Scope::Group(None)));
    assert!(csv(&report).lines().skip(1).all(|line| line.contains(",group,,")));
}

#[test]
fn a_long_report_says_what_it_leaves_out() {
    let mut report = report();
    let one = report.figures[0].clone();
    report.figures.extend((0..10_000).map(|i| Figure { measure: format!("m{i}"), ..one.clone() }));
    let left = report.figures.len() - 10_000;
    assert!(html(&report).contains(&format!("<p>{left} more figures are left out here")));
    assert!(!html(&super::sample::report()).contains("left out here"));
    assert_eq!(::csv::Reader::from_reader(csv(&report).as_bytes()).records().count(), report.figures.len());
}

#[test]
fn drawings_show_the_largest_groups_and_say_so() {
    let mut report = report();
    let (group, figure) = (report.groups[0].clone(), report.figures[0].clone());
    for i in 0..60 {
        let value = Some(format!("group {i}"));
        report.groups.push(Group {
            attribute: "many".to_owned(),
            value: value.clone(),
            rows: 100 + i,
            ..group.clone()
        });
        report.figures.push(Figure {
            attribute: Some("many".to_owned()),
            scope: Scope::Group(value),
            ..figure.clone()
        });
    }
    let page = html(&report);
    assert!(page.contains("Drawings show the 40 largest of 60 groups"));
    assert_eq!(faults(&page), Vec::<String>::new());
    let drawn = |i: u64| page.contains(&format!(">group {i}</text>"));
    assert!((20..60).all(drawn) && !(0..20).any(drawn));
    assert!(!html(&super::sample::report()).contains("Drawings show"));
}

#[test]
fn verdicts_speak_of_evidence() {
    let report = report();
    let gap =
        report.figures.iter().find(|figure| figure.scope == Scope::Difference && figure.versus.is_none()).unwrap();
    let case = |change: &dyn Fn(&mut Figure, &mut Report)| {
        let (mut figure, mut report) = (gap.clone(), report.clone());
        change(&mut figure, &mut report);
        verdict(&report, &figure)
    };
    let p = |figure: &mut Figure, p: f64| figure.test.as_mut().unwrap().adjusted = Some(p);
    assert_eq!(case(&|figure, _| p(figure, 0.01)), "evidence of a gap");
    assert_eq!(case(&|figure, _| p(figure, 0.3)), "no evidence of a gap; one of 0.090 would probably have been found");
    let margin = case(&|figure, report| {
        p(figure, 0.3);
        report.settings.statistics.margin = 0.02;
    });
    assert!(margin.starts_with("inconclusive"), "{margin}");
    let few = |value: f64| {
        move |figure: &mut Figure, _: &mut Report| (p(figure, value), figure.status = Status::LowSupport).1
    };
    assert_eq!(case(&few(0.01)), "evidence of a gap, on few rows");
    assert_eq!(case(&few(0.3)), "inconclusive: few rows");
    assert_eq!(case(&|figure, _| figure.test = None), "inconclusive: not tested");
    // What cannot be shown has no verdict, whatever its test says.
    for status in [Status::Undefined, Status::NotMeasured, Status::Suppressed] {
        let words = case(&move |figure, _| (p(figure, 0.01), figure.status = status).1);
        assert!(!words.contains("evidence"), "{words}");
    }
    let versus = |low: f64| {
        move |figure: &mut Figure, _: &mut Report| {
            (figure.versus, figure.test) = (Some(0), None);
            figure.interval.as_mut().unwrap().low = low;
        }
    };
    assert_eq!(case(&versus(0.01)), "evidence of a difference, not corrected");
    assert_eq!(case(&versus(-0.01)), "no evidence of a difference");
    let same = |p: f64| {
        move |figure: &mut Figure, report: &mut Report| {
            figure.versus = Some(0);
            figure.test = Some(Test { name: "tost".to_owned(), p, adjusted: None, null: None, detectable: None });
            report.settings.statistics.margin = 0.02;
        }
    };
    assert_eq!(case(&same(0.01)), "evidence that the difference is within ±0.020");
    assert!(case(&same(0.2)).starts_with("inconclusive"));
}

#[test]
fn every_reason_has_words() {
    for reason in [
        Undefined::NoRows,
        Undefined::NoPositives,
        Undefined::NoNegatives,
        Undefined::NothingSelected,
        Undefined::NothingRejected,
        Undefined::OneGroup,
        Undefined::DivisionByZero,
        Undefined::Unreachable,
        Undefined::TooFewShadows,
        Undefined::Unbounded,
        Undefined::Unbalanced,
    ] {
        let word = serde_json::to_value(reason).unwrap();
        assert_ne!(reason_words(word.as_str().unwrap()), word.as_str().unwrap());
    }
}

/// For looking at: EVENKEEL_RENDER_SAMPLE names a folder.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test asks where to leave its page")]
fn a_sample_can_be_looked_at() {
    let report = report();
    let page = html(&report);
    assert!(page.len() < 2_000_000);
    if let Ok(folder) = std::env::var("EVENKEEL_RENDER_SAMPLE") {
        let folder = std::path::Path::new(&folder);
        std::fs::write(folder.join("report.html"), page).unwrap();
        std::fs::write(folder.join("report.md"), markdown(&report)).unwrap();
        std::fs::write(folder.join("report.csv"), csv(&report)).unwrap();
        std::fs::write(folder.join("report.json"), report.canonical().unwrap()).unwrap();
    }
}
