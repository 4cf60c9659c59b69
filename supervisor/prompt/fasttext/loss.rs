//! Computes the score of a label from the mean of a text's rows, with the loss function that the model was trained with.

use super::error::{ModelError, damaged};
use super::matrix::Matrix;

/// The tool adds this to a probability before it takes the logarithm.
const LOG_OFFSET: f64 = 1e-5;
/// The number of steps in the tool's table of the sigmoid, which covers -8 to 8.
const SIGMOID_STEPS: f32 = 512.0;
const SIGMOID_END: f32 = 8.0;
/// An upper bound for the sum of all counts. As the count of a node that is not built yet, it keeps that node from being
/// chosen as the smallest one.
const MAX_COUNT: i64 = 1_000_000_000_000_000;

/// The loss function that a model was trained with.
#[derive(Debug)]
pub(super) enum Loss {
    Softmax,
    /// One-vs-all or negative sampling: the score of a label does not depend on the other labels.
    Independent,
    HierarchicalSoftmax(Tree),
}

impl Loss {
    /// Creates the loss function from its code in the file. `counts` is how often each label was seen in training; it
    /// determines the form of the tree.
    pub(super) fn new(
        code: i32,
        counts: impl ExactSizeIterator<Item = i64>,
    ) -> Result<Self, ModelError> {
        match code {
            1 => Tree::new(counts).map(Self::HierarchicalSoftmax),
            2 | 4 => Ok(Self::Independent),
            3 => Ok(Self::Softmax),
            other => Err(damaged("loss", other, "1 to 4")),
        }
    }

    /// Computes the score of a label. `hidden` is the mean row of the text, `[dim]`.
    pub(super) fn score(&self, output: &Matrix, hidden: &[f32], label: usize) -> f32 {
        let log = match self {
            Self::Softmax => log(softmax(output, hidden, label)),
            Self::Independent => log(sigmoid_by_table(output.dot_row(label, hidden))),
            Self::HierarchicalSoftmax(tree) => tree.log_score(output, hidden, label),
        };
        log.exp()
    }
}

/// The Huffman tree of labels of hierarchical softmax, in which frequent labels are near the root. The probability of a label
/// is the product of the probabilities of each turn on the way to it.
#[derive(Debug)]
pub(super) struct Tree {
    labels: usize,
    /// The labels, followed by the inner nodes; the root is last.
    nodes: Vec<Node>,
}

#[derive(Clone, Debug)]
struct Node {
    count: i64,
    /// The index of the parent, which is greater than the node's own; `None` for the root.
    parent: Option<usize>,
    /// Whether this is the right child, for which the parent's sigmoid is the probability.
    is_right: bool,
}

impl Tree {
    fn new(counts: impl ExactSizeIterator<Item = i64>) -> Result<Self, ModelError> {
        let labels = counts.len();
        let node = |count| Node {
            count,
            parent: None,
            is_right: false,
        };
        let mut sum = 0;
        let mut nodes = Vec::with_capacity(2 * labels);
        for count in counts {
            sum = match (0..MAX_COUNT).contains(&count) {
                true => sum + count,
                false => MAX_COUNT,
            };
            if sum >= MAX_COUNT {
                let expected = format!("0 to {MAX_COUNT} for all together");
                return Err(damaged("the count of a label", count, &expected));
            }
            nodes.push(node(count));
        }
        // Labels are sorted by falling counts and inner nodes by rising counts, so the smallest node is the next of either.
        let mut next_label = labels.checked_sub(1);
        let mut next_inner = labels;
        while nodes.len() + 1 < 2 * labels {
            let parent = nodes.len();
            nodes.push(node(MAX_COUNT));
            let mut count = 0;
            for is_right in [false, true] {
                let child = match next_label {
                    Some(label) if nodes[label].count < nodes[next_inner].count => {
                        next_label = label.checked_sub(1);
                        label
                    }
                    _ => {
                        next_inner += 1;
                        next_inner - 1
                    }
                };
                count += nodes[child].count;
                nodes[child].parent = Some(parent);
                nodes[child].is_right = is_right;
            }
            nodes[parent].count = count;
        }
        Ok(Self { labels, nodes })
    }

    fn log_score(&self, output: &Matrix, hidden: &[f32], label: usize) -> f32 {
        let mut turns = Vec::new();
        let mut at = &self.nodes[label];
        while let Some(parent) = at.parent {
            turns.push((parent - self.labels, at.is_right));
            at = &self.nodes[parent];
        }
        // The tool sums from the root down.
        let turns = turns.iter().rev();
        turns.fold(0.0, |sum, (row, is_right)| {
            let right = sigmoid(output.dot_row(*row, hidden));
            let taken = match is_right {
                true => right,
                false => narrowed(1.0 - f64::from(right)),
            };
            sum + log(taken)
        })
    }
}

fn softmax(output: &Matrix, hidden: &[f32], label: usize) -> f32 {
    let mut values: Vec<f32> = (0..output.rows())
        .map(|row| output.dot_row(row, hidden))
        .collect();
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for value in &mut values {
        *value = narrowed(f64::from(*value - max).exp());
    }
    values[label] / values.iter().sum::<f32>()
}

fn sigmoid(x: f32) -> f32 {
    narrowed(1.0 / f64::from(1.0 + (-x).exp()))
}

fn sigmoid_by_table(x: f32) -> f32 {
    if x < -SIGMOID_END {
        0.0
    } else if x > SIGMOID_END {
        1.0
    } else {
        let step = ((x + SIGMOID_END) * SIGMOID_STEPS / SIGMOID_END / 2.0).floor();
        let x = step * (2.0 * SIGMOID_END) / SIGMOID_STEPS - SIGMOID_END;
        narrowed(1.0 / (1.0 + f64::from((-x).exp())))
    }
}

fn log(probability: f32) -> f32 {
    narrowed((f64::from(probability) + LOG_OFFSET).ln())
}

/// Rounds to single precision. The tool computes some values in double precision and stores them in single precision.
#[expect(clippy::cast_possible_truncation, reason = "rounds to the nearest")]
fn narrowed(value: f64) -> f32 {
    value as f32
}
