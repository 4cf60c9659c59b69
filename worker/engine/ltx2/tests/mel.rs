//! The mel spectrogram against values that torchaudio 2.11 gives.

use fastvideo_ltx2::audio_vae;
use fastvideo_ltx2::mel::MelSpectrogram;
use tch::{Device, Kind, Tensor};

use crate::reference::Reference;

#[test]
fn sound_is_heard_as_torchaudio_hears_it() {
    let mut config = audio_vae::Config::library(&Reference::open().config("audio_vae")).unwrap();
    config.mel_bins = 64;
    config.sample_rate = 16000;
    config.mel_hop_length = 160;
    // A sawtooth that rises in pitch, and one that keeps it.
    let i = Tensor::arange(12000, (Kind::Int64, Device::Cpu));
    let left = (&i * &i)
        .floor_divide_scalar(37)
        .remainder(1999)
        .to_kind(Kind::Float)
        / 1000
        - 1;
    let right = (i * 7).remainder(331).to_kind(Kind::Float) / 331 - 0.5;
    let waveform = Tensor::stack(&[left, right], 0).unsqueeze(0);
    let mel = MelSpectrogram::new(&config, Device::Cpu).forward(&waveform, 24000);
    assert_eq!(mel.size(), [1, 2, 51, 64]);
    let expected = [
        ([0, 0, 0, 0], 1.864_959_4),
        ([0, 0, 25, 20], -1.732_412),
        ([0, 0, 50, 63], 0.103_962_26),
        ([0, 1, 3, 5], -3.439_611_4),
        ([0, 1, 25, 40], -1.324_757_1),
        ([0, 1, 49, 63], -3.053_861_1),
    ];
    for (place, expected) in expected {
        let actual = mel.double_value(&place);
        assert!(
            (actual - expected).abs() < 1e-4,
            "{place:?}: {actual}, expected {expected}"
        );
    }
    let means = mel.mean_dim([0i64, 2, 3].as_slice(), false, Kind::Float);
    let expected = Tensor::from_slice(&[-1.2780f32, -2.6958]);
    assert!(means.allclose(&expected, 0.0, 1e-4, false), "{means}");
}
