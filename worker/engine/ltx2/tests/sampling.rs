//! Schedules, noise and steps against the reference.

use fastvideo_ltx2::sampling;
use fastvideo_ltx2::sampling::latents::{self, AudioGrid, VideoGrid};
use fastvideo_ltx2::sampling::noise::{self, DrawOrder};
use fastvideo_ltx2::sampling::schedule::{self, DISTILLED, REFINE, Scheduler};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::reference::{Reference, check, grids_of};

fn grids(reference: &Reference) -> (VideoGrid, AudioGrid) {
    let golden = reference.golden("rng");
    let seed = reference.settings()["seed"].as_u64().unwrap();
    let of = |i| golden.get(&format!("seed{seed}.pair.{i}"));
    grids_of(of(0), of(1))
}

#[test]
fn seeds_give_the_reference_s_numbers() {
    let reference = Reference::open();
    let golden = reference.golden("rng");
    let seed = reference.settings()["seed"].as_u64().unwrap();
    let (video, audio) = grids(&reference);
    let drawn = noise::draw(seed, DrawOrder::Channels, &[(video, audio)]);
    let expected = |i| golden.get(&format!("seed{seed}.pair.{i}"));
    assert_eq!(latents::unpack_video(&drawn[0].video, &video), *expected(0));
    assert_eq!(latents::unpack_audio(&drawn[0].audio, &audio), *expected(1));
}

#[test]
fn second_stage_is_drawn_token_by_token_in_either_order() {
    let reference = Reference::open();
    let golden = reference.golden("rng");
    let seed = reference.settings()["seed"].as_u64().unwrap();
    let (_, audio) = grids(&reference);
    let tokens = golden.get(&format!("seed{seed}.f32_1x24x8"));
    let [_, count, channels] = tokens.size()[..] else {
        panic!()
    };
    let video = VideoGrid {
        channels,
        frames: 1,
        height: count,
        width: 1,
    };
    let drawn = noise::draw(seed, DrawOrder::Tokens, &[(video, audio)]);
    assert_eq!(drawn[0].video, *tokens);

    let stages = [(video, audio), (video, audio)];
    let second = |order| noise::draw(seed, order, &stages).remove(1).video;
    assert_eq!(second(DrawOrder::Channels), second(DrawOrder::Tokens));
}

#[test]
fn schedules_equal_the_reference() {
    let reference = Reference::open();
    let golden = reference.golden("scheduler");
    let check = |name: &str, sigmas: Vec<f32>| {
        let expected = golden.get(&format!("{name}.sigmas"));
        check(name, &Tensor::from_slice(&sigmas), expected, 1e-6);
    };
    check("distilled8", DISTILLED.to_vec());
    check("refine3", REFINE.to_vec());
    check("refine2", Scheduler::refine(2).unwrap());
    for steps in 2..8 {
        let name = format!("distilled{steps}");
        check(&name, schedule::fewer(&DISTILLED, steps).unwrap());
    }
    let mut config = reference.scheduler();
    assert_eq!(Scheduler::library(&config).unwrap(), Scheduler::Distilled);
    config["use_dynamic_shifting"] = json!(true);
    config["shift_terminal"] = json!(0.1);
    let base = Scheduler::library(&config).unwrap();
    for name in golden.names().filter(|name| name.starts_with("base.")) {
        // base.steps3.tokens24.sigmas
        let number = |word: &str| {
            let found = name.split('.').find_map(|part| part.strip_prefix(word));
            found.unwrap().parse::<usize>().unwrap()
        };
        let sigmas = base
            .sigmas(number("steps"), number("tokens") as i64)
            .unwrap();
        check(name.strip_suffix(".sigmas").unwrap(), sigmas);
    }
}

#[test]
fn euler_step_equals_the_reference() {
    let golden = Reference::open().golden("scheduler");
    let (x, velocity) = (golden.get("euler.x"), golden.get("euler.velocity"));
    let (sigma, next) = (DISTILLED[5], DISTILLED[6]);
    let x0 = x - velocity * f64::from(sigma);
    check(
        "euler",
        &sampling::euler(x, &x0, sigma, next),
        golden.get("euler.from5"),
        1e-6,
    );
}

#[test]
fn tokens_turn_back_into_the_grids_they_came_from() {
    let video = VideoGrid {
        channels: 3,
        frames: 2,
        height: 4,
        width: 5,
    };
    let grid = Tensor::arange(120, (Kind::Float, Device::Cpu)).view(video.shape());
    let tokens = latents::pack_video(&grid);
    assert_eq!(tokens.size(), video.packed_shape());
    // Frame 1, row 2, column 3 of channel 2.
    assert_eq!(
        tokens.double_value(&[0, 20 + 13, 2]),
        grid.double_value(&[0, 2, 1, 2, 3])
    );
    assert_eq!(latents::unpack_video(&tokens, &video), grid);

    let audio = AudioGrid {
        channels: 2,
        frames: 3,
        bins: 4,
    };
    let grid = Tensor::arange(24, (Kind::Float, Device::Cpu)).view(audio.shape());
    let tokens = latents::pack_audio(&grid);
    assert_eq!(tokens.size(), audio.packed_shape());
    assert_eq!(
        tokens.double_value(&[0, 1, 4 + 2]),
        grid.double_value(&[0, 1, 1, 2])
    );
    assert_eq!(latents::unpack_audio(&tokens, &audio), grid);
}
