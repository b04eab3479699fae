"""Sampling loops: pictures from text (`image`), answers about pictures and text (`text`)."""
