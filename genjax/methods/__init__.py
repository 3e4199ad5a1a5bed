"""One file per family of generative models: pure losses and samplers, collected in a `Method`."""
