"""The Keyword Transformer, a model that no library has, as an encoder of fusionkit."""
