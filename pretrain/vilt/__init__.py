"""Images and sentences in one transformer: ViLT's model, its objectives and its entry point."""
