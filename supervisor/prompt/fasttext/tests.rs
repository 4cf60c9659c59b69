//! Compares scores with those of the fastText tool, which also trains the models of these tests.

use std::process::Command;
use std::{fs, iter};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::trained::{COMMON, LEANING, QUICK, Trained, fasttext, run};
use super::*;

const SENTENCES: usize = 1000;
/// How many labels of each sentence are compared, the likeliest first.
const ASKED: usize = 8;

/// Runs `fasttext predict-prob`: returns the labels and scores of each line, the likeliest first, at most `ASKED`.
fn answers(trained: &Trained, lines: &[String]) -> Vec<Vec<(String, String)>> {
    let file = trained.folder.path().join("questions.txt");
    fs::write(&file, lines.concat()).unwrap();
    let output = run(fasttext()
        .arg("predict-prob")
        .args([&trained.model, &file])
        .arg(trained.labels.len().min(ASKED).to_string()));
    let answers = output.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let pairs = words.chunks_exact(2);
        pairs.map(|p| (p[0].to_owned(), p[1].to_owned())).collect()
    });
    answers.collect()
}

/// Makes a random line for the tool: known and unknown words, other scripts, blanks of all kinds, or nothing at all.
fn sentence(rng: &mut StdRng) -> String {
    let mut line = String::new();
    for _ in 0..rng.random_range(0..12) {
        match rng.random_range(0..12) {
            0..4 => line += COMMON.choose(rng).unwrap(),
            4..7 => line += LEANING.choose(rng).unwrap(),
            7 => line.extend((0..rng.random_range(1..20)).map(|_| rng.random_range('a'..='z'))),
            8 => line.extend(
                (0..rng.random_range(1..8)).map(|_| rng.random_range('\u{a0}'..='\u{1fff}')),
            ),
            9 => line.extend((0..3).map(|_| rng.random_range('😀'..='🙏'))),
            10 => {
                line += ["<", ">", "__label__kind1", "__label__what", "</s", "!?"]
                    .choose(rng)
                    .unwrap()
            }
            _ => {}
        }
        line += [" ", " ", " ", "  ", "\t", "\r", "\u{b}", "\u{c}", "\0", ""]
            .choose(rng)
            .unwrap();
    }
    line + "\n"
}

/// Formats a score as the tool does: six significant digits without trailing zeros.
fn printed(score: f32) -> String {
    let exponent = f64::from(score).abs().log10().floor();
    if (-4.0..6.0).contains(&exponent) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 9"
        )]
        let decimals = (5.0 - exponent) as usize;
        let text = format!("{score:.decimals$}");
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            false => text,
        }
    } else {
        let text = format!("{score:.5e}");
        let (digits, exponent) = text.split_once('e').unwrap();
        let digits = digits.trim_end_matches('0').trim_end_matches('.');
        format!(
            "{digits}e-{:02}",
            exponent.trim_start_matches('-').parse::<u8>().unwrap()
        )
    }
}

/// Checks that the scores of a thousand sentences are those of the tool.
fn check(trained: &Trained) {
    let mut rng = StdRng::seed_from_u64(2);
    let lines: Vec<String> = iter::repeat_with(|| sentence(&mut rng))
        .take(SENTENCES)
        .collect();
    let answers = answers(trained, &lines);
    assert_eq!(answers.len(), lines.len());
    let model = Classifier::open(&trained.model).unwrap();
    let mut compared = 0;
    for (line, answers) in lines.iter().zip(answers) {
        for (label, expected) in &answers {
            let label = model.label(label).unwrap();
            let score = model.score(line, label).unwrap();
            assert_same(&printed(score), expected, line);
            compared += 1;
        }
        if answers.is_empty() {
            assert_eq!(model.score(line, Label(0)), None, "{line:?}");
        }
        let score = |name: &String| model.score(line, model.label(name).unwrap());
        if let [first, second, ..] = &answers[..]
            && first.1 != second.1
        {
            let others = trained.labels.iter().filter(|name| **name != first.0);
            assert!(
                others
                    .take(ASKED)
                    .all(|other| score(other) < score(&first.0)),
                "{line:?}"
            );
        }
    }
    assert!(compared >= SENTENCES, "{compared} scores");
}

/// Whether two scores are equal, except for the last of six digits where the compiler contracts `a * b + c`.
fn assert_same(given: &str, expected: &str, line: &str) {
    if cfg!(target_arch = "x86_64") {
        assert_eq!(given, expected, "{line:?}");
    } else {
        let number = |text: &str| text.parse::<f32>().unwrap();
        let (given, expected) = (number(given), number(expected));
        assert!(
            (given - expected).abs() <= 1e-5 * expected.max(1e-2),
            "{line:?}: {given} {expected}"
        );
    }
}

#[test]
fn softmax_scores_are_the_tools() {
    check(&Trained::new("-dim 10", 3));
}

#[test]
fn scores_of_one_label_alone_are_the_tools() {
    for loss in ["softmax", "hs", "ova"] {
        check(&Trained::new(&format!("-dim 10 -loss {loss}"), 1));
    }
}

#[test]
fn hierarchical_softmax_scores_are_the_tools() {
    check(&Trained::new("-dim 10 -loss hs", 7));
}

#[test]
fn one_against_all_scores_are_the_tools() {
    check(&Trained::new("-dim 10 -loss ova", 3));
}

#[test]
fn negative_sampling_scores_are_the_tools() {
    check(&Trained::new("-dim 10 -loss ns", 4));
}

#[test]
fn scores_with_word_ngrams_are_the_tools() {
    check(&Trained::new("-dim 10 -wordNgrams 2 -bucket 2000", 2));
    check(&Trained::new("-dim 10 -wordNgrams 4 -bucket 5000", 2));
}

#[test]
fn scores_with_subwords_are_the_tools() {
    check(&Trained::new("-dim 10 -minn 2 -maxn 5 -bucket 3000", 2));
    check(&Trained::new("-dim 10 -minn 1 -maxn 1 -bucket 300", 2));
    check(&Trained::new(
        "-dim 10 -minn 3 -maxn 6 -wordNgrams 3 -bucket 3000",
        3,
    ));
}

#[test]
fn scores_of_quantised_models_are_the_tools() {
    let model = || Trained::new("-dim 10 -minn 2 -maxn 4 -wordNgrams 2 -bucket 3000", 2);
    check(&model().quantised(""));
    check(&model().quantised("-qnorm"));
    check(&model().quantised("-dsub 3"));
    check(&model().quantised("-cutoff 500"));
    check(&model().quantised("-cutoff 500 -retrain -qnorm -dsub 4"));
}

#[test]
fn scores_of_a_model_whose_output_is_quantised_too_are_the_tools() {
    let model = || Trained::new("-dim 12 -minn 2 -maxn 4 -bucket 3000", 300);
    check(&model().quantised("-qout"));
    check(&model().quantised("-qout -qnorm"));
}

/// A model of version 11 differs only in that it has no subwords.
#[test]
fn scores_of_a_model_of_the_older_version_are_the_tools() {
    let trained = Trained::new("-dim 10 -minn 2 -maxn 4 -bucket 3000", 2);
    let mut bytes = fs::read(&trained.model).unwrap();
    bytes[4..8].copy_from_slice(&OLD_VERSION.to_le_bytes());
    fs::write(&trained.model, bytes).unwrap();
    check(&trained);
}

#[test]
fn text_ends_with_its_line() {
    let trained = Trained::new("-dim 10 -wordNgrams 2 -bucket 100", 2);
    let model = Classifier::open(&trained.model).unwrap();
    let label = model.label("__label__unsafe").unwrap();
    let score = |text| model.score(text, label);
    assert_eq!(score("a slow camera\nblood weapon"), score("a slow camera"));
    assert_eq!(
        score("a slow camera </s> blood weapon"),
        score("a slow camera")
    );
    assert_ne!(score("a slow camera blood weapon"), score("a slow camera"));
    assert_eq!(model.label("unsafe"), None);
}

#[test]
fn a_model_of_words_is_refused() {
    let trained = Trained::new("-dim 4", 2);
    trained.tool(
        "skipgram",
        &format!("{QUICK} -dim 4 -bucket 10 -minCount 1"),
    );
    let error = Classifier::open(&trained.model).unwrap_err();
    assert!(matches!(error, ModelError::NotSupervised), "{error}");
}

#[test]
fn what_is_no_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| Classifier::open(path).unwrap_err().to_string();
    assert_eq!(open(folder.path()), "not a file");
    assert_eq!(open(Path::new("/dev/zero")), "not a file");
    assert_eq!(open(&folder.path().join("none")), "cannot read it");
    let file = folder.path().join("file");
    let with = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        open(&file)
    };
    assert_eq!(
        with(b""),
        "cut off or damaged: the magic number takes 4 bytes and 0 are left"
    );
    assert_eq!(
        with(b"GIF89a and more"),
        "not a fastText model: it begins with 0x38464947, expected 0x2f4f16ba"
    );
    let header = |version: i32| [MAGIC.to_le_bytes(), version.to_le_bytes()].concat();
    assert_eq!(
        with(&header(13)),
        "a fastText model of version 13, expected 11 or 12"
    );
}

/// Returns small models of all kinds, as bytes.
fn small_models() -> Vec<Vec<u8>> {
    let dense = "-dim 4 -minn 2 -maxn 3 -wordNgrams 2 -bucket 40";
    let quantised = || Trained::new("-dim 5 -minn 2 -maxn 3 -wordNgrams 2 -bucket 400", 2);
    let models = [
        Trained::new(dense, 2),
        Trained::new(&format!("{dense} -loss hs"), 5),
        Trained::new("-dim 4 -loss ova", 2),
        quantised().quantised(""),
        quantised().quantised("-qnorm -cutoff 300"),
        Trained::new("-dim 4 -minn 2 -maxn 2 -bucket 300", 260).quantised("-qnorm -qout"),
    ];
    models
        .iter()
        .map(|model| fs::read(&model.model).unwrap())
        .collect()
}

/// Reads a damaged model and, if that succeeds, scores a text with it.
fn use_model(bytes: &[u8]) -> Result<(), ModelError> {
    let model = Classifier::read(bytes, bytes.len() as u64)?;
    for text in [
        "",
        "a slow camera 東京 unheard-of blood </s>",
        "🌊🌊 __label__unsafe \0 x",
    ] {
        for label in 0..model.dictionary.labels().len().min(3) {
            model.score(text, Label(label));
        }
    }
    Ok(())
}

/// Runs a test of this file again in a process that is limited to 1 GiB of memory.
fn in_little_memory(test: &str, work: impl FnOnce()) {
    const MARK: &str = "FASTTEXT_IN_LITTLE_MEMORY";
    if std::env::var_os(MARK).is_some() {
        return work();
    }
    #[expect(clippy::disallowed_methods, reason = "a limit is for a whole process")]
    let mut limited = Command::new("prlimit");
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    limited.arg("--as=1073741824").arg("--");
    limited.arg(std::env::current_exe().unwrap());
    let output = run(limited.args(["--exact", &name]).env(MARK, "yes"));
    assert!(output.contains("1 passed"), "{output}");
}

#[test]
fn files_that_are_cut_off_anywhere_are_refused() {
    in_little_memory("files_that_are_cut_off_anywhere_are_refused", || {
        for model in small_models() {
            assert!(use_model(&model).is_ok());
            for len in 0..model.len() {
                let error = use_model(&model[..len]).unwrap_err();
                assert!(matches!(error, ModelError::Short { .. }), "{len}: {error}");
                // The file is truncated while it is read.
                let error = Classifier::read(&model[..len], model.len() as u64).unwrap_err();
                assert!(
                    matches!(error, ModelError::Read(_) | ModelError::Short { .. }),
                    "{len}: {error}"
                );
            }
        }
    });
}

#[test]
fn numbers_that_are_absurd_anywhere_do_no_harm() {
    in_little_memory("numbers_that_are_absurd_anywhere_do_no_harm", || {
        for model in small_models() {
            // Each position in the header and in the first words, and some of the later ones.
            for at in (0..300).chain((300..model.len() - 8).step_by(11)) {
                for number in [
                    i64::MAX,
                    i64::MIN,
                    i64::from(i32::MAX),
                    -1,
                    0,
                    1,
                    1 << 31,
                    1 << 40,
                ] {
                    for len in [4, 8] {
                        let mut damaged = model.clone();
                        damaged[at..at + len].copy_from_slice(&number.to_le_bytes()[..len]);
                        let _ = use_model(&damaged);
                    }
                }
            }
        }
    });
}

#[test]
fn bytes_that_are_wrong_anywhere_do_no_harm() {
    in_little_memory("bytes_that_are_wrong_anywhere_do_no_harm", || {
        let mut rng = StdRng::seed_from_u64(3);
        let mut refused = 0;
        for model in small_models() {
            for _ in 0..3000 {
                let mut damaged = model.clone();
                // Most of a model is matrices, in which any number is valid; the interesting part comes first.
                let end = *[100, 1500, model.len()].choose(&mut rng).unwrap();
                for _ in 0..rng.random_range(1..8) {
                    let at = rng.random_range(0..end.min(model.len()));
                    damaged[at] ^= 1u8 << rng.random_range(0..8);
                }
                refused += u32::from(use_model(&damaged).is_err());
            }
        }
        assert!(refused > 1000, "{refused}");
    });
}
