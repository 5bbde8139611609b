//! The linear layers of a block: their paths, shapes and biases. Holds no weight.

use super::Config;

/// A linear layer inside a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum Module {
    Query,
    Key,
    Value,
    Output,
    Gate,
    Up,
    Down,
}

impl Module {
    /// All of them, in the order of their sites.
    pub(in crate::model) const ALL: [Self; 7] =
        [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// Returns the path of the module in block `layer`.
    pub(in crate::model) fn path(self, layer: usize) -> String {
        let name = match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        };
        format!("model.layers.{layer}.{name}")
    }

    /// Returns the sizes of input and output.
    pub(in crate::model) fn shape(self, config: &Config) -> (usize, usize) {
        let (heads, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        match self {
            Self::Query => (config.hidden_size, heads),
            Self::Key | Self::Value => (config.hidden_size, kv),
            Self::Output => (heads, config.hidden_size),
            Self::Gate | Self::Up => (config.hidden_size, config.intermediate_size),
            Self::Down => (config.intermediate_size, config.hidden_size),
        }
    }

    /// Returns whether the layer has a bias.
    pub(in crate::model) fn bias(self, config: &Config) -> bool {
        match self {
            Self::Query | Self::Key | Self::Value | Self::Output => config.attention_bias,
            Self::Gate | Self::Up | Self::Down => config.mlp_bias,
        }
    }
}
