//! What a reload costs with 1 000 upstreams of 5 backends each and 1 000 routes: `cargo bench --bench reload`, about 20 s.
//!
//! `parse` is text to checked configuration, `plan` the comparison of two, `apply` everything after the parsing: plan,
//! prepare, commit and retire, in a process that runs.

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use isobar::config::{Config, Vocabulary, parse};
use isobar::supervisor::Applied;
use isobar::supervisor::reload_plan::plan;
use isobar::{Isobar, Running};

const UPSTREAMS: usize = 1_000;

const BACKENDS: usize = 5;

/// The weight of every backend of the first `changed` upstreams is `weight`, and 1 of the others.
fn text(changed: usize, weight: u16) -> String {
    let mut text = String::from("workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n");
    for upstream in 0..UPSTREAMS {
        let weight = if upstream < changed { weight } else { 1 };
        let _ = write!(
            text,
            "[[route]]\nhosts = [\"service-{upstream}.example.com\"]\npath_prefix = \"/api\"\nupstream = \"service-{upstream}\"\n\
             [upstream.service-{upstream}]\nstrategy = \"weighted_round_robin\"\nbackends = ["
        );
        for backend in 0..BACKENDS {
            let _ = write!(
                text,
                "{{ address = \"10.{}.{}.{backend}:9000\", weight = {weight} }}, ",
                upstream / 250,
                upstream % 250
            );
        }
        text.push_str("]\n");
    }
    text
}

fn read(text: &str) -> Config {
    match parse(text, "lb.toml", &|_| None, &Vocabulary::default()) {
        Ok(loaded) => loaded.config,
        Err(problems) => panic!("{problems}"),
    }
}

fn reload(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reload");
    group.sampling_mode(SamplingMode::Flat);

    let before = text(0, 1);
    group.throughput(Throughput::Bytes(before.len() as u64));
    group.bench_function("parse", |bencher| bencher.iter(|| read(black_box(&before))));
    group.throughput(Throughput::Elements(UPSTREAMS as u64));

    let cases = [("nothing", text(0, 1)), ("one upstream", text(1, 2)), ("every upstream", text(UPSTREAMS, 2))];
    let old = read(&before);
    for (name, after) in &cases {
        let new = read(after);
        assert_eq!(plan(&old, &new).is_empty(), *name == "nothing");
        group.bench_function(format!("plan, {name} changed"), |bencher| {
            bencher.iter(|| plan(black_box(&old), black_box(&new)));
        });
    }

    let running = match Isobar::builder().admin(false).config_text(before.as_str()).start() {
        Ok(running) => running,
        Err(error) => panic!("{error}"),
    };
    for (name, after) in &cases {
        // Goes on over the samples, so that what is applied always differs from what is served.
        let mut turn = 0;
        group.bench_function(format!("apply, {name} changed"), |bencher| {
            bencher.iter_custom(|reloads| {
                let reload = |_| {
                    let text = [after, &before][turn % 2];
                    turn += 1;
                    let applied = apply(&running, text);
                    assert_eq!(applied.plan.is_empty(), *name == "nothing");
                    applied.took
                };
                (0..reloads).map(reload).sum()
            });
        });
    }
    group.finish();
}

fn apply(running: &Running, text: &str) -> Arc<Applied> {
    let reload = running.handle().apply_text(text);
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    match runtime.map(|runtime| runtime.block_on(reload)) {
        Ok(Ok(applied)) => applied,
        Ok(Err(error)) => panic!("{error}"),
        Err(error) => panic!("{error}"),
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .without_plots();
    targets = reload
}
criterion_main!(benches);
